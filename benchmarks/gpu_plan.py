"""What `gpu.py` measures, in the order of importance. Light to import."""

from dataclasses import dataclass, replace


# In order of importance. "tf32" is fp32 whose products and convolutions may round their inputs to TF32.
ALL_PRECISIONS = ("bf16", "fp16", "tf32", "fp32")
TASKS = ("ave", "avvp", "avs_s4", "avs_ms3", "avqa")
METHODS = ("dg_sct", "lavish", "stg_cma")
# The first run is the reference; repeating it shows how far runs of one precision differ.
CURVES = ("fp32", "fp32 again", "tf32", "fp16", "bf16")
BATCH_SIZES = (1, 2, 4, 8, 16)
PASSES = ("model forward", "model training step")
COMPILE_SHARE = 0.3


@dataclass(frozen=True)
class Options:
    """What the command line chooses for all groups."""

    device: str
    size: str
    batch_size: int
    repeats: int
    steps: int
    backend: str
    seed: int


@dataclass(frozen=True)
class Group:
    """
    Measurements of one process.

    Args:
        kind: Key of `gpu_measurements.MEASUREMENTS`.
        task, method: The preset; without a method CAE-AV's.
        precisions: Precisions to measure, the most important first.
        variant: How the model runs: `"eager"`, `"graphed"` as CUDA graphs, or `"compiled"`.
        batch_sizes: Clips per batch.
        passes: What to measure besides the bare towers.
    """

    kind: str
    task: str = "ave"
    method: str | None = None
    precisions: tuple[str, ...] = ("bf16",)
    variant: str = "eager"
    batch_sizes: tuple[int, ...] = ()
    passes: tuple[str, ...] = PASSES

    def names(self) -> list[str]:
        """Return the names of the measurements."""
        if self.kind == "presets":
            words = [self.kind, self.task, *([self.method] if self.method else []), self.variant]
            last = [] if self.passes == PASSES else self.passes
            return [" ".join([*words, p, f"x{size}", *last]) for size in self.batch_sizes for p in self.precisions]
        if self.kind == "profile":
            return [f"profile {name}" for name in self.passes]
        return [f"{self.kind} {precision}" for precision in self.precisions]


def plan(options: Options) -> list[Group]:
    """Return all groups in the order of their importance."""
    cae_av = Group("presets", precisions=ALL_PRECISIONS, batch_sizes=(options.batch_size,))
    others = [replace(cae_av, task=task, method=method) for method in METHODS for task in TASKS]
    others += [replace(cae_av, task=task, method="ssuformer") for task in ("avs_ms3", "avs_s4")]
    first = [group for group in others if group.task == "ave"] + [others[-2]]
    other_batches = tuple(size for size in BATCH_SIZES if size != options.batch_size)

    def compiled(group: Group, precision: str = "bf16") -> list[Group]:
        return [replace(group, variant="compiled", precisions=(precision,), passes=(name,)) for name in PASSES]

    return [
        Group("machine", precisions=ALL_PRECISIONS),
        cae_av,
        Group("curves", precisions=CURVES),
        Group("profile"),
        replace(cae_av, variant="graphed", precisions=("bf16",)),
        *(replace(cae_av, task=task) for task in TASKS[1:]),
        replace(cae_av, method="head_alone"),
        *first,
        replace(cae_av, precisions=("bf16",), batch_sizes=other_batches),
        *(group for precision in ALL_PRECISIONS for group in compiled(cae_av, precision)),
        *(group for group in others if group not in first),
        *(group for task in TASKS[1:] for group in compiled(replace(cae_av, task=task))),
        *(one for group in others for one in compiled(group)),
    ]
