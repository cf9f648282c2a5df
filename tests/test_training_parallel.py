"""What processes of a run agree on and tell each other, with a link that stands for the other ones."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from vit_rs import distributed
from vit_rs.cli import main
from vit_rs.exceptions import ConfigError, DecodeError, OtherProcessError, VitRsError
from vit_rs.recipes import fashion_mnist
from vit_rs.training import sharded
from vit_rs.training.interruption import Interrupted
from vit_rs.training.parallel import Parallel, connected
from vit_rs.training.sources import open_sources
from vit_rs.training.stages import build_stages


class OtherProcesses:
    """A link to processes that answer what they are told to."""

    def __init__(self, rank=0, world_size=3, answers=(), told=None):
        self.rank, self.world_size = rank, world_size
        self.answers, self.left, self.word = list(answers), told, []

    def gather(self, value):
        values = list(self.answers)
        values.insert(self.rank, value)
        return values

    def largest(self, *values):
        return [max(pair) for pair in zip(values, *self.answers, strict=True)]

    def tell(self, failure):
        self.word.append(failure)

    def told(self):
        return self.left


def among(**link):
    other = OtherProcesses(**link)
    return Parallel("ddp", "cpu", other), other


def test_alone_nothing_is_asked():
    alone = Parallel("fsdp2", "cpu")
    model = torch.nn.Linear(2, 2)
    assert alone.wrap(model) is model
    assert (alone.is_main, alone.sharded, alone.world_size) == (True, False, 1)
    assert alone.stop_or_save(15, save=False) == (15, False)
    assert alone.mean(2.5) == 2.5
    assert alone.gather(3) == [3]
    assert alone.from_main(lambda: 4) == 4
    with pytest.raises(KeyError), alone.together(), alone.watched():
        raise KeyError


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 9])
def test_shares_are_all_and_once(count):
    values = list(range(count))
    processes = [among(rank=rank)[0] for rank in range(3)]
    shares = [process.share(values) for process in processes]
    assert sorted(value for share in shares for value in share) == values
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if count:
        parts = [torch.tensor(share) for share in shares if share]
        assert processes[0].interleave(parts).tolist() == values


def test_no_two_processes_draw_the_same():
    drawn = []
    for rank, step in itertools.product(range(3), range(2)):
        among(rank=rank)[0].seed(7, step)
        drawn.append(torch.rand(4))
    assert len({tuple(values.tolist()) for values in drawn}) == 6


def test_a_signal_to_one_stops_all_and_the_first_s_clock_saves():
    first, _ = among(answers=[(0, 0), (15, 0)])
    assert first.stop_or_save(None, save=True) == (15, True)
    last, _ = among(rank=2, answers=[(0, 0), (0, 0)])
    assert last.stop_or_save(None, save=True) == (None, False)


def test_what_fails_on_one_is_raised_on_all():
    told = {"signal": None, "text": "7.jpg: truncated"}
    other, _ = among(answers=[None, told])
    with pytest.raises(VitRsError, match=r"process 2 of this run failed: 7.jpg: truncated"), other.together():
        pass
    own, _ = among(answers=[None, None])
    with pytest.raises(DecodeError, match=r"8\.jpg"), own.together():
        raise DecodeError("8.jpg: truncated")
    with own.together():
        pass


def test_what_fails_on_all_is_said_by_the_first():
    told = {"signal": None, "text": "8.jpg: truncated"}
    for rank, expected in ((0, DecodeError), (1, OtherProcessError)):
        process, _ = among(rank=rank, answers=[told, told])
        with pytest.raises(expected, match=r"8\.jpg"), process.together():
            raise DecodeError("8.jpg: truncated")
    process, _ = among(rank=1, answers=[{"signal": None, "text": "7.jpg: truncated"}, None])
    with pytest.raises(DecodeError, match=r"8\.jpg"), process.together():  # its own: nobody else knows it
        raise DecodeError("8.jpg: truncated")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "status"), [(OtherProcessError("process 3 of this run failed: x"), 2), (Interrupted(15), 143)]
)
def test_the_first_process_says_what_happened_elsewhere(monkeypatch, capsys, rank, error, status):
    def train(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("vit_rs.training.train", train)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", str(rank))
    assert main(["train"]) == status
    assert capsys.readouterr().err.count("\n") == (rank == 0)


def test_an_own_failure_is_said_where_the_others_are_gone(monkeypatch):
    process, link = among()

    def gather(_value):
        raise RuntimeError(LOST)

    monkeypatch.setattr(link, "gather", gather)
    with pytest.raises(DecodeError, match=r"8\.jpg"), process.together():
        raise DecodeError("8.jpg: truncated")
    with pytest.raises(RuntimeError, match="Connection closed"), process.together():
        pass


LOST = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4321"


def test_a_lost_process_is_named_as_that():
    process, link = among()
    lost = r"a process of this run was lost: .*Connection closed by peer"
    with pytest.raises(VitRsError, match=lost), process.watched():
        raise RuntimeError(LOST)
    assert link.word == []


def test_what_a_process_left_word_of_is_raised():
    process, _ = among(told={"rank": 1, "signal": None, "text": "7.jpg: truncated"})
    with pytest.raises(VitRsError, match=r"process 1 of this run failed: 7.jpg"), process.watched():
        raise RuntimeError(LOST)
    process, _ = among(told={"rank": 1, "signal": 15, "text": "stopped by SIGTERM, and saved"})
    with pytest.raises(Interrupted, match="stopped by SIGTERM, and saved") as stop, process.watched():
        raise RuntimeError(LOST)
    assert stop.value.signum == 15


def test_word_is_left_of_every_other_end():
    process, link = among()
    for error in (DecodeError("7.jpg"), ZeroDivisionError("1 / 0"), Interrupted(2)):
        with pytest.raises(type(error)), process.watched():
            raise error
    assert [word["text"] for word in link.word] == ["7.jpg", "ZeroDivisionError: 1 / 0", "SIGINT"]
    assert [word["signal"] for word in link.word] == [None, None, 2]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(LOST), True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection closed by peer"), False),
        (VitRsError("Connection closed by peer"), False),
    ],
)
def test_lost_connections_are_told_from_other_errors(error, lost):
    assert distributed.lost_connection(error) is lost


def test_a_batch_is_divided_or_refused():
    config = fashion_mnist.config().validated()
    sources = open_sources(config.data)
    process, _ = among(rank=1)
    both = dataclasses.replace(config, batch_size=96, finetune=dataclasses.replace(config.finetune, batch_size=48))
    first, second = build_stages(both, sources, process)
    assert (first.batch_size, second.batch_size) == (96, 48)
    with first.train_loader() as loader:
        assert (loader.batch_size, loader.rank, loader.world_size) == (32, 1, 3)
        assert len(loader) == first.steps_per_epoch
    each = dataclasses.replace(both, batch_of="process")
    assert [stage.batch_size for stage in build_stages(each, sources, process)] == [288, 144]
    with pytest.raises(ConfigError, match=r"^batch_size: 97 .* among 3 processes; .*, for example 96 or 99"):
        build_stages(dataclasses.replace(both, batch_size=97), sources, process)
    two = dataclasses.replace(both, finetune=dataclasses.replace(both.finetune, batch_size=2))
    with pytest.raises(ConfigError, match=r"^finetune.batch_size: 2 .*, for example 3"):
        build_stages(two, sources, process)


def test_who_was_launched(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not distributed.is_launched()
    assert distributed.is_main()
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun with one process
    monkeypatch.setenv("RANK", "0")
    assert not distributed.is_launched()
    assert not distributed.is_supervised()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert distributed.is_supervised()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert distributed.is_launched()
    assert distributed.is_supervised()
    assert not distributed.is_main()


def test_an_old_torch_does_not_shard_on_cpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(sharded, "works_on_cpu", lambda: False)
    with pytest.raises(ConfigError, match=r"^parallel: fsdp2 runs on CPUs with torch 2.7"), connected("fsdp2", "cpu"):
        pass


@pytest.mark.parametrize("device", ["mps", "cuda:1"])
def test_several_processes_need_a_device_each(monkeypatch, device):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=rf"^device: several processes .* got '{device}'"), connected("ddp", device):
        pass
