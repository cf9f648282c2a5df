"""What a loader did in an epoch, and what held it up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LoaderStats", "Reader", "byte_text"]

Reader = Literal["threads", "data set", "inflation"]
Verdict = Literal["reading-bound", "decode-bound", "python-bound", "consumer-bound"]

# A consumer that waits less than this share of its time would gain nothing worth having from a faster loader.
_RARELY = 0.1
# Threads that are busy less than this share of the time are not what the consumer waits for.
_IDLE = 0.7
_SHOWN_FAILURES = 3


@dataclass(frozen=True)
class LoaderStats:
    """What an `ImageLoader` did in its current or last epoch; printed, it is a table.

    Rates and shares are of the time from the epoch's start to the last batch that the consumer took, or to the epoch's
    end: they do not depend on when they are asked for. Thread times are elapsed times, not CPU times: they grow where
    more threads run than there are CPUs.

    Attributes:
        epoch: number of the epoch.
        batches: batches handed over.
        images: images in them.
        seconds: the time that all this took.
        images_per_second: images / seconds.
        bytes_read: encoded bytes read, those of batches made ahead too.
        read_us: mean thread time for reading an image, microseconds.
        decode_us: the same for headers, random numbers and decoding.
        augment_us: the same for operations on pixels.
        emit_us: the same for normalising, converting and writing into the batch.
        wait_seconds: how long the consumer waited for batches.
        ready_batches: finished batches that wait for the consumer now.
        mean_ready_batches: their mean over the time.
        threads: number of threads.
        cpus: CPUs that this process may use, divided by torchrun's LOCAL_WORLD_SIZE.
        busy_share: share of the time that a thread was at work, 0..1, mean of all threads.
        reader: what reading is: each thread reads its images ("threads"), waits for the one Python thread of an
            EncodedDataset ("data set"), or inflates a gzipped shard or waits for the thread that does ("inflation").
        python_us: mean time for the user's own Python on an image, microseconds: with DataLoader, in the consumer's own
            thread.
        failures: a line for each sample that was skipped or substituted, in the epoch's order.
    """

    epoch: int
    batches: int
    images: int
    seconds: float
    images_per_second: float
    bytes_read: int
    read_us: float
    decode_us: float
    augment_us: float
    emit_us: float
    wait_seconds: float
    ready_batches: int
    mean_ready_batches: float
    threads: int
    cpus: int
    busy_share: float
    reader: Reader
    failures: tuple[str, ...]
    python_us: float = 0.0

    @classmethod
    def from_core(
        cls, raw: Mapping[str, Any], *, threads: int, cpus: int, reader: Reader = "threads", python_us: float = 0.0
    ) -> LoaderStats:
        """Return the statistics that the engine counts."""
        made = max(raw["images"], 1)
        wall = max(raw["wall"], 1)
        read, decode, augment, emit = (raw[stage] / 1e3 / made for stage in ("read", "decode", "augment", "emit"))
        return cls(
            epoch=raw["epoch"],
            batches=raw["batches"],
            images=raw["delivered"],
            seconds=raw["wall"] / 1e9,
            images_per_second=raw["delivered"] / wall * 1e9,
            bytes_read=raw["bytes"],
            read_us=read,
            decode_us=decode,
            augment_us=augment,
            emit_us=emit,
            wait_seconds=raw["wait"] / 1e9,
            ready_batches=raw["ready"],
            mean_ready_batches=raw["ready_time"] / wall,
            threads=threads,
            cpus=cpus,
            busy_share=min(raw["busy"] / wall / threads, 1.0),
            reader=reader,
            failures=tuple(raw["failures"]),
            python_us=python_us,
        )

    @property
    def wait_share(self) -> float:
        """Share of the time that the consumer waited, 0..1."""
        return self.wait_seconds / self.seconds if self.seconds else 0.0

    @property
    def python_share(self) -> float:
        """Share of the time that the consumer's thread spent in the user's transforms, 0..1."""
        return min(self.python_us * self.images_per_second / 1e6, 1.0)

    @property
    def verdict(self) -> Verdict | None:
        """What held the epoch up; None before the second batch, when everybody has only waited for the first.

        "consumer-bound": the consumer waited less than a tenth of its time. Else "reading-bound" or "decode-bound": the
        threads spent more time on reading, or on decoding, augmenting and writing. A Python data set is read ahead of
        the threads: where they wait for it for more than a tenth of their time, it sets the pace. "python-bound": the
        user's own transforms took more than a tenth of the consumer's time, and more than it waited.
        """
        if self.batches < 2:
            return None
        if self.python_share > max(_RARELY, self.wait_share):
            return "python-bound"
        if self.wait_share < _RARELY:
            return "consumer-bound"
        made = self.decode_us + self.augment_us + self.emit_us
        share = _RARELY if self.reader == "data set" else 0.5
        return "reading-bound" if self.read_us > share * (self.read_us + made) else "decode-bound"

    @property
    def advice(self) -> str:
        """One sentence: what was measured, what it means, and what would help."""
        if self.verdict is None:
            return "A verdict needs two batches."
        waited = f"The consumer waited {self.wait_share:.0%} of the time"
        threads = "the thread was" if self.threads == 1 else f"the {self.threads} threads were"
        busy = f"{threads} busy {self.busy_share:.0%}"
        if self.verdict == "python-bound":
            return (
                f"The user's own transforms took {self.python_share:.0%} of the consumer's time, and {busy}: explain() "
                "says which they are; more threads do not help"
            )
        if self.verdict == "consumer-bound":
            return f"{waited} and {busy}: the loader is fast enough."
        if self.verdict == "reading-bound" and self.reader != "threads":
            return f"{waited} and {busy}, {self._waiting}."
        if self.busy_share < _IDLE:
            return f"{waited}, but {busy}: a larger prefetch helps a consumer that asks in bursts."
        if self.verdict == "reading-bound":
            return f"{waited} and {busy}, most of it reading: more threads than CPUs or a faster disk help."
        stages = {"decoding": self.decode_us, "augmentation": self.augment_us, "writing batches": self.emit_us}
        limit = f"{waited} and {busy}: {max(stages, key=lambda name: stages[name])} is the limit"
        if self.threads < self.cpus:
            return f"{limit}; more threads help, up to the {self.cpus} CPUs that this process may use."
        cpus = "the one usable CPU" if self.cpus == 1 else f"each of the {self.cpus} usable CPUs"
        return f"{limit}; {cpus} has its thread: more CPUs or smaller images help."

    @property
    def _waiting(self) -> str:
        share = self.read_us / (self.read_us + self.decode_us + self.augment_us + self.emit_us)
        bursts = ", or a larger prefetch for a consumer that asks in bursts" if self.busy_share < _IDLE else ""
        if self.reader == "data set":
            return (
                f"{share:.0%} of it waiting for the data set, which one Python thread reads: "
                f"a faster data set helps, or files or shards in its place{bursts}; more threads do not"
            )
        return (
            f"{share:.0%} of it inflating a gzipped shard or waiting for the thread that does: "
            f"plain tars help{bursts}; more threads do not"
        )

    def __str__(self) -> str:
        stages = {
            "read": self.read_us,
            "decode": self.decode_us,
            "augment": self.augment_us,
            "emit": self.emit_us,
        }
        python = (
            [("python", f"{self.python_us:>9,.1f} us an image, in the consumer's thread")] if self.python_us else []
        )
        total = sum(stages.values()) or 1.0
        rows = [
            (f"epoch {self.epoch}", f"{self.images:,} images in {self.batches:,} batches, {self.seconds:.2f} s"),
            ("images/s", f"{self.images_per_second:,.0f}"),
            ("consumer", f"waited {self.wait_seconds:.2f} s, {self.wait_share:.0%} of the time"),
            ("ready batches", f"{self.ready_batches} now, {self.mean_ready_batches:.1f} on average"),
            ("threads", f"{self.threads}, busy {self.busy_share:.0%} of the time"),
            *((name, f"{time:>9,.1f} us an image  {time / total:>4.0%}") for name, time in stages.items()),
            *python,
            ("read in all", byte_text(self.bytes_read)),
            ("failures", f"{len(self.failures):,}"),
            *(("", text) for text in self.failures[:_SHOWN_FAILURES]),
            *([("", "...")] if len(self.failures) > _SHOWN_FAILURES else []),
            ("verdict", self.verdict or "none yet"),
            ("", self.advice),
        ]
        return "\n".join(f"{name:<14} {text}" for name, text in rows)


def byte_text(count: float) -> str:
    """Return a number of bytes for people: "38.5 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
