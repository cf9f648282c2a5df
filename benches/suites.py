"""The pages that report.py writes: the benches that each holds, what it says about its method, its goals."""

from __future__ import annotations

from dataclasses import dataclass

from goals import LOADING_GOALS, LOADING_ROWS, LOOP_GOALS, MODEL_GOALS, OPERATOR_GOALS, OPERATOR_ROWS, Goal, ReadmeRow

PASSES = """\
with Python's garbage collector off.

Other work on a machine comes and goes, so the variants of a row group run directly one after another; the whole is
repeated in passes, each in a new process, and every second pass runs the variants in reverse order. A figure is the
median over the passes of a pass's median round; in parentheses stand the quartiles of all rounds. A ratio, `x`, is the
variant's time over that of vit_rs in the same pass: the median over the passes, in parentheses the lowest and the
highest. Above 1, vit_rs is faster."""

OPERATOR_METHOD = f"""\
Every variant's result is compared with the same computation in plain torch before it is timed. The variants of a row
group read the same input and give the same dtype, shape and memory order on the same number of threads; those that
write into a buffer write into the same one. A fresh result is allocated and freed within the time, page faults
included. vit_rs keeps the memory of large results that were dropped for later ones, so such a call finds its pages in
place; "earlier ones held" means that no result is dropped, so that each call needs new memory. Plain copies and casts
do less than the others: they move no value to another place. What can be made once is made before the time: views,
matrices, compiled code.

pytest-benchmark times rounds of at least 0.5 ms for 0.15 s, at least five, and five calls where results are held,
{PASSES}

The threads of torch wait for each other, so other work on the machine slows torch on several threads down by more than
its share: those figures mean something only where the machine had nothing else to do."""

LOADING_METHOD = f"""\
All variants of a row group read the same files. Before it is timed, a variant shows what it does without randomness:
the pictures that it then makes are compared with torchvision's, in units of 1/255, with a bound for each variant that
stands in `benches/`. Random results are checked for their number, shape, dtype and memory order, those of single
operations and policies for their shape, dtype and that something changes. Nothing but that is checked of the policies,
of RandomErasing and of kornia-rs's colour jitter, which no two libraries draw alike. The native loop is not checked
here. "Not antialiased" peers do less work than the others.

Decode and augment: JPEG files in memory become normalised f32 images, (3, 224, 224), or batches of them, for a whole
set in each round. `vit_rs` is `ImageLoader`; `vit_rs, transform(bytes)` is the same chain called file by file.
Peers that take one image at a time run in a Python loop; on two threads, in two Python threads, which share the
interpreter. DALI runs in batches of 64, without prefetching, because it would otherwise work while others are measured.
The native loop is Rust's `cargo bench --bench loader_limit`, without Python and batches.

Batches: a round is one epoch over a folder of files that lie in the page cache, to torch batches in the training
process, after an epoch that is not timed. The processes of DataLoader and webdataset start before the time and persist
(`persistent_workers=True`); DALI and vit_rs prefetch two batches. FFCV and webdataset read their own copies of the
files, made before the time; FFCV's are encoded anew at quality 95, and its batches are channels-last in memory, which
is faster for it.

A torchvision script: both loaders are given the same ImageFolder, which decodes with Pillow, and the same transforms;
"PIL" ends in ToImage, "tensors" begins with it. The evaluation chain of the same form, Resize 256 and CenterCrop 224,
must be torch's, value for value. timm's policy is measured where Pillow is older than 13, with which timm fails.

Augmentations: one image of 224 x 224 in memory, u8, no decoding, one thread; the mean of many draws in each round.
`vit_rs` takes and gives arrays (224, 224, 3), as its loader holds images and as albumentations and cv2 do;
`vit_rs, tensors` takes and gives tensors (3, 224, 224), as torchvision's tensor kernels do. PIL images and kornia-rs's
are those libraries' own. kornia-rs blurs with a fixed sigma of 1 where the others draw one. DINO's views are ten of
each file, two of 224 and eight of 96 pixels, decoding included.

Rounds of single operations and policies last at least 0.5 ms, the others as long as the whole set takes; all are timed
{PASSES}"""


MODEL_METHOD = """\
Our model and timm's have the same random weights and get the same images, f32 on the CPU in torch's eager mode. Before
the clock starts, the logits and the gradients of all parameters are compared: they differ by less than 1e-4 of each
tensor's largest value. Training mode has no dropout; a round is the forward pass, the cross entropy and the backward
pass, which writes each gradient to new memory. Inference runs in `torch.inference_mode()`.

The two models take turns, and in each other round the other one begins: what else the machine does falls on both. A
figure is the median of the rounds, in parentheses stand their quartiles. A ratio, `x`, is timm's time over that of
vit_rs, the median of the rounds' own ratios; in parentheses stands its 95 % interval, by the percentile bootstrap over
the rounds. Above 1, vit_rs is faster."""

TRAINING_METHOD = """\
Both loops train the same model on the same JPEG files: random resized crops of 224 x 224 and mirroring, normalised f32,
AdamW, f32, without clipping. `vit_rs` is `vit-rs train` with a record for each step; it decodes in two threads of the
training process. The plain loop is torch's own with torchvision's transforms on PIL images and two worker processes; it
reads the loss in each step. Files lie in the page cache; torch computes on two threads.

A step lasts from the beginning of a forward pass to that of the next. What it spends outside of forward pass (with the
loss), backward pass and optimizer step is the loop's: waits for batches, schedules, records, the bar. Both loops are
timed from outside, by the same wrappers around those three; "by its own timers" is what vit_rs writes into its
records as `loop_share`, which counts also the gradients' release as no part of the loop. Three steps are not counted,
the next 15 are. A figure is the median of the steps, in parentheses stand their quartiles; `x` is the peer's time, or
share, over that of vit_rs. What is asked for stands in the table as a row of its own."""


@dataclass(frozen=True)
class Suite:
    """The benches of one page of docs/ and one table of README, if it has rows there."""

    name: str
    title: str
    page: str  # in docs/
    modules: tuple[str, ...]
    method: str
    goals: tuple[Goal, ...]
    goals_title: str
    peers: tuple[str, ...]  # distributions whose versions the page states
    rows: tuple[ReadmeRow, ...]
    readme: str  # stands above README's table; {processor} is filled in
    mark: str  # of README's table
    reads_files: bool = False

    @property
    def begin(self) -> str:
        """Return the line above README's table."""
        return f"<!-- {self.mark}:begin -->"

    @property
    def end(self) -> str:
        """Return the line below README's table."""
        return f"<!-- {self.mark}:end -->"


OPERATORS = Suite(
    name="operators",
    title="Benchmarks of the operators",
    page="benchmarks.md",
    modules=("bench_patchify", "bench_resample"),
    method=OPERATOR_METHOD,
    goals=OPERATOR_GOALS,
    goals_title="Goals, on one thread",
    peers=("numpy", "timm", "einops", "scipy"),
    rows=OPERATOR_ROWS,
    readme="Microseconds on one thread of {processor}: for an image of 3 x 224 x 224 in a batch of 64, P = 16;\n"
    "for a table of position embeddings. In parentheses: how many times the time of vit-rs.",
    mark="benchmarks",
)
LOADING = Suite(
    name="loading",
    title="Benchmarks of the image loader",
    page="benchmarks-loading.md",
    modules=("bench_transform", "bench_loader", "bench_dropin", "bench_augment"),
    method=LOADING_METHOD,
    goals=LOADING_GOALS,
    goals_title="Goals",
    peers=(
        "torchvision",
        "pillow",
        "albumentations",
        "opencv-python-headless",
        "kornia-rs",
        "nvidia-dali-cuda130",
        "ffcv",
        "webdataset",
    ),
    rows=LOADING_ROWS,
    readme="Images a second on {processor}, 224 x 224, f32. In parentheses: how many times the time of vit-rs.",
    mark="loading",
    reads_files=True,
)
MODELS = Suite(
    name="models",
    title="Benchmarks of the models",
    page="benchmarks-models.md",
    modules=("bench_models",),
    method=MODEL_METHOD,
    goals=MODEL_GOALS,
    goals_title="Goals",
    peers=("timm",),
    rows=(),
    readme="",
    mark="",
)
TRAINING = Suite(
    name="training",
    title="Benchmark of the training loop",
    page="benchmarks-training.md",
    modules=("bench_loop",),
    method=TRAINING_METHOD,
    goals=LOOP_GOALS,
    goals_title="Goal",
    peers=("torchvision", "pillow"),
    rows=(),
    readme="",
    mark="",
    reads_files=True,
)
SUITES = {suite.name: suite for suite in (OPERATORS, LOADING, MODELS, TRAINING)}
