"""The Accelerate configurations shipped with the recipes, as parsed by Accelerate itself."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from caeav_hf.errors import CaeAvError
from caeav_hf.training.recipe import RECIPES, available_recipes
from caeav_hf.training.sharding import plan_sharding


CONFIGS = RECIPES / "accelerate"
TYPES = {
    "one": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
}


def launch_arguments(name):
    """Return the arguments that `accelerate launch` reads from a configuration."""
    flags = ["--config_file", str(CONFIGS / f"{name}.yaml"), "train.py", "--task", "ave"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(flags))
    return arguments


def test_there_are_no_others():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(TYPES)
    assert not set(TYPES) & set(available_recipes())


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_them(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == TYPES[name]
    assert config.num_processes == (1 if name == "one" else 4)
    # Precision is a value of the recipe.
    assert config.mixed_precision == "no"


@pytest.fixture
def two_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def test_fsdp_is_the_second_version(two_devices, monkeypatch):
    arguments = launch_arguments("fsdp")
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is False


def test_deepspeed_is_refused():
    with pytest.raises(CaeAvError, match="DeepSpeed is not supported"):
        plan_sharding(SimpleNamespace(distributed_type=DistributedType.DEEPSPEED), None, shard_towers=False)
