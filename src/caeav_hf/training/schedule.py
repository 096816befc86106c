"""What changes with the epoch: the learning rate and the weight of the selection entropy. Both are pure functions."""

from torch import nn
from torch.optim import Adam, Optimizer

from .recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> Adam:
    """Adam over the parameters that are trained; frozen towers take no part, so they carry no optimizer state."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Adam(
        trained,
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        weight_decay=recipe.weight_decay,
    )


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of an epoch (counted from 0): multiplied by `lr_decay_factor` every `lr_decay_epochs` epochs."""
    return recipe.learning_rate * recipe.lr_decay_factor ** (epoch // recipe.lr_decay_epochs)


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Give every parameter group of the optimizer this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


def entropy_weight(recipe: Recipe, full_weight: float, epoch: int) -> float:
    """Weight of the selection entropy (gamma of Eq. 25) in an epoch (counted from 0): 0 first, then `full_weight`."""
    return 0.0 if epoch < recipe.entropy_warmup_epochs else full_weight
