"""Several workers: the same pictures as one draws, also when one is killed, and clear words where there can be none."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from cachedit_cli import ray_workers
from cachedit_cli.cli import main
from cachedit_cli.crew import ATTEMPTS, spread
from cachedit_cli.errors import InputError, RunError
from cachedit_cli.jobs import Call, Job
from cachedit_cli.local_workers import devices, processes
from cachedit_cli.recipe import load
from cachedit_cli.remote import Ended, Gone, Opening, checked
from cachedit_cli.run import Crew, Opened, Outcome, Results, Watcher, generate, in_process
from cachedit_cli.runs import load as load_run
from cachedit_cli.terms.stats import ContextInfo, Row
from cachedit_cli.worker import Broken, Drawn, Failure, Order, Worker

CAUGHT = pytest.CaptureFixture[str]
OPENING = Opening({"device": "cpu"}, 0.0)
CALLS = [Call(number, (Job("a", number),), (f"a-{number}",)) for number in range(6)]


class Killing:
    """A watcher that kills a worker as soon as the first picture is there: it is drawing the next."""

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        self._pids = pids
        self.killed = 0

    def planned(self, pictures: int, there: int) -> None: ...

    def opened(self, device: str, dtype: str, seconds: float) -> None: ...

    def begins(self, batch: Sequence[Job], steps: int | None) -> None: ...

    def found(self, lists: Sequence[ContextInfo]) -> None: ...

    def row(self, row: Row) -> None: ...

    def failed(self, batch: Sequence[Job], error: str) -> None:
        pytest.fail(error)

    def saved(self, batch: Sequence[Job], files: Sequence[Sequence[Path]], seconds: float) -> None:
        if not self.killed:
            self.killed = self._pids()[0]
            os.kill(self.killed, signal.SIGKILL)


def no_one() -> Sequence[int]:
    return [os.getppid()]


def run(folder: Path, crew: Crew, watcher: Any) -> Outcome:
    """Draw six pictures, two of another size and number of steps."""
    prompts = folder / "p.csv"
    prompts.write_text("prompt,width,num_inference_steps\ncat face,,\nred heart,32,3\n")
    changes = (f"generate.prompts={prompts}", "generate.num_images=3", "generate.num_inference_steps=6")
    settings = ("cache.max_warmup_steps=2", "cache.residual_diff_threshold=0.4", "model.device=cpu")
    recipe = load("demo", (*changes, *settings, f"output.dir={folder / 'outputs'}"))
    return generate(recipe, command=["test"], version="0", watcher=watcher, crew=crew)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What one process draws."""
    watcher = Killing(no_one)
    watcher.killed = 1  # nobody
    return run(tmp_path_factory.mktemp("alone"), in_process, watcher)


def assert_same(found: Outcome, alone: Outcome) -> None:
    """Compare files, byte by byte, and records, but for what took how long."""
    mine, other = load_run(found.folder).record, load_run(alone.folder).record
    assert (mine.status, mine.failures) == ("done", [])
    for one, two in zip(mine.images, other.images, strict=True):
        assert (found.folder / one.file).read_bytes() == (alone.folder / two.file).read_bytes()
        assert (one.file, one.generation, one.sha256, one.steps) == (two.file, two.generation, two.sha256, two.steps)
    assert sorted(file.name for file in found.folder.iterdir()) == sorted(file.name for file in alone.folder.iterdir())
    assert [decided(row) for row in mine.log.rows] == [decided(row) for row in other.log.rows]
    assert [info.name for info in mine.log.contexts] == [info.name for info in other.log.contexts]


def decided(row: Row) -> tuple[object, ...]:
    return (row.generation, row.step, row.decision, row.reason, row.diff, row.computed, row.saved)


# ------------------------------------------------------------------------------------------------------- real workers


def test_two_processes_draw_what_one_does_also_when_one_is_killed(tmp_path: Path, alone: Outcome) -> None:
    watcher = Killing(lambda: [child.pid or 0 for child in multiprocessing.active_children()])
    found = run(tmp_path, processes(2), watcher)
    assert watcher.killed  # perhaps before it had opened its model: then the other one may draw everything
    assert any(row.saved for row in found.record.log.rows)
    assert found.record.environment["workers"] == 2
    assert_same(found, alone)
    assert multiprocessing.active_children() == []


def test_two_actors_of_ray_draw_what_one_process_does_also_when_one_is_killed(tmp_path: Path, alone: Outcome) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")

    def actors() -> list[int]:
        below = psutil.Process().children(recursive=True)
        return [child.pid for child in below if any("ray::Remote" in word for word in child.cmdline())]

    watcher = Killing(actors)
    found = run(tmp_path, ray_workers.on_ray("local", 2), watcher)
    assert watcher.killed
    assert found.record.environment["workers"] == 2
    assert_same(found, alone)


def test_what_a_process_cannot_begin_with_ends_the_run_with_its_own_message() -> None:
    order = Order(load("demo", ("model.device=cpu",)).resolved(), plugins=("gone.py",))
    with pytest.raises(InputError, match=r"^--plugin: gone\.py: no such Python file$"):
        list(processes(1)(order, CALLS[:1], lambda *_: None, Killing(no_one)))
    assert multiprocessing.active_children() == []


# ----------------------------------------------------------------------------------------------------------- the desk


class InMemory:
    """A worker that does what a function says of its place and a call."""

    def __init__(self, place: int, draw: Callable[[int, Call], Drawn | Failure], opens: bool = True) -> None:
        self._place = place
        self._draw = draw
        self._opens = opens
        self.closed = threading.Event()

    def open(self) -> Opening:
        if not self._opens:
            raise Gone("killed by SIGKILL")
        return OPENING

    def draw(self, call: Call) -> Drawn | Failure:
        return self._draw(self._place, call)

    def dismiss(self) -> None: ...

    def close(self) -> None:
        self.closed.set()


def drawn(call: Call) -> Drawn:
    return Drawn([], call.number, {})


def settled(results: Iterator[tuple[Call, Drawn | Failure]]) -> dict[int, Drawn | Failure]:
    return {call.number: result for call, result in results}


def test_what_a_killed_worker_held_is_drawn_by_another() -> None:
    died = threading.Event()

    def draw(place: int, call: Call) -> Drawn:
        if place == 0 and not died.is_set():
            died.set()
            raise Gone("killed by SIGKILL")
        assert died.wait(10)
        return drawn(call)

    found = settled(spread(lambda place: InMemory(place, draw), 3, CALLS, lambda *_: None))
    assert found == {call.number: drawn(call) for call in CALLS}


def test_a_call_that_kills_its_workers_fails_after_some_attempts_and_the_others_are_drawn() -> None:
    def draw(place: int, call: Call) -> Drawn:
        if call.number == 1:
            raise Gone("killed by SIGKILL")
        return drawn(call)

    hired = list[int]()

    def hire(place: int) -> InMemory:
        hired.append(place)
        return InMemory(place, draw)

    found = settled(spread(hire, 2, CALLS, lambda *_: None))
    assert found.pop(1) == Failure("its worker ended 3 times, the last time: killed by SIGKILL")
    assert found == {call.number: drawn(call) for call in CALLS if call.number != 1}
    assert len(hired) <= 2 + ATTEMPTS


def test_workers_that_are_killed_one_after_the_other_end_the_run() -> None:
    def draw(place: int, call: Call) -> Drawn:
        raise Gone("killed by SIGKILL")

    with pytest.raises(RunError, match=r"^\d+ workers in a row ended while drawing: killed by SIGKILL$"):
        settled(spread(lambda place: InMemory(place, draw), 2, [*CALLS, *CALLS], lambda *_: None))


def test_a_worker_that_never_opens_leaves_the_work_to_the_others_and_none_left_is_an_error() -> None:
    def draw(place: int, call: Call) -> Drawn:
        return drawn(call)

    found = settled(spread(lambda place: InMemory(place, draw, opens=place == 1), 2, CALLS, lambda *_: None))
    assert len(found) == len(CALLS)
    with pytest.raises(RunError) as caught:
        settled(spread(lambda place: InMemory(place, draw, opens=False), 2, CALLS, lambda *_: None))
    assert str(caught.value) == (
        "no worker is left, all ended while loading the model: killed by SIGKILL; try fewer --workers"
    )


def test_an_error_in_one_worker_ends_all_of_them() -> None:
    hands = list[InMemory]()

    def draw(place: int, call: Call) -> Drawn:
        if place == 1:
            raise InputError("no such argument")
        assert hands[0].closed.wait(10)  # as a long call that is cut off
        raise Gone("killed by SIGKILL")

    def hire(place: int) -> InMemory:
        hands.append(InMemory(place, draw))
        return hands[-1]

    with pytest.raises(InputError, match=r"^no such argument$"):
        settled(spread(hire, 2, CALLS, lambda *_: None))
    assert all(hand.closed.is_set() for hand in hands)


def test_a_run_that_is_interrupted_ends_its_workers_in_the_midst_of_their_calls() -> None:
    hands = dict[int, InMemory]()

    def draw(place: int, call: Call) -> Drawn:
        if call.number:
            assert hands[place].closed.wait(10)  # as a long call that is cut off
            raise Gone("killed by SIGKILL")
        return drawn(call)

    def hire(place: int) -> InMemory:
        hands[place] = InMemory(place, draw)
        return hands[place]

    results = spread(hire, 2, CALLS, lambda *_: None)
    assert next(results) == (CALLS[0], drawn(CALLS[0]))
    results.close()
    assert all(hand.closed.is_set() for hand in hands.values())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker ")]


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [("input", InputError, "x"), ("run", RunError, "x"), ("bug", RuntimeError, "in a worker: x"), ("gone", Gone, "x")],
)
def test_what_ended_a_worker_is_raised_here(kind: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        checked(Ended(kind, "x"))
    assert str(caught.value) == text


def test_a_gpu_that_an_error_broke_is_left_to_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    worker = object.__new__(Worker)
    monkeypatch.setattr(worker, "_opened", SimpleNamespace(device=torch.device("cuda:1")), raising=False)
    with pytest.raises(Broken) as caught:
        worker._tidy(Failure("FluxPipeline failed: CUDA error"))
    assert str(caught.value) == ("FluxPipeline failed: CUDA error; cuda:1 cannot be used after that, --resume goes on")


def test_what_the_pipeline_refuses_of_every_picture_is_wrong_input_and_leaves_nothing(tmp_path: Path) -> None:
    def crew(order: Order, todo: Sequence[Call], opened: Opened, watcher: Watcher) -> Results:
        for call in todo:
            yield call, Failure("generate: refused", refused=True)

    quiet = Killing(no_one)
    quiet.failed = lambda *_: None  # type: ignore[method-assign]
    recipe = load("demo", (f"output.dir={tmp_path}", "generate.num_images=2"))
    with pytest.raises(InputError, match=r"^generate: refused$"):
        generate(recipe, command=[], version="0", watcher=quiet, crew=crew)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- bad input


def test_each_worker_has_a_gpu_of_its_own_and_fewer_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices("auto", 2) == ["cuda:0", "cuda:1"]
    assert devices("cpu", 3) == ["cpu"] * 3
    assert devices("cuda:1", 1) == ["cuda:1"]
    for asked, message in (
        ("auto", "--workers 3: there are 2 GPUs here, and each worker needs its own"),
        ("cuda:1", "--workers 3: model.device is 'cuda:1', which is one device; write 'cuda'"),
    ):
        with pytest.raises(InputError) as caught:
            devices(asked, 3)
        assert str(caught.value) == message


def test_a_cluster_has_a_core_or_a_gpu_for_each_worker_or_the_run_is_refused() -> None:
    plain: list[dict[str, Any]] = [{"Alive": True, "Resources": {"CPU": 8.0}}] * 2
    gone: list[dict[str, Any]] = [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    gpus: list[dict[str, Any]] = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}]
    needs = ray_workers.needs
    assert needs([*plain, *gone], "auto", None) == ray_workers.Needs(2, 0, 8)
    assert needs(plain, "cpu", 3) == ray_workers.Needs(3, 0, 4)
    assert needs([*plain, *gpus], "auto", None) == ray_workers.Needs(2, 1, 1)
    for nodes, asked, count, message in (
        (plain, "cpu", 17, "--workers 17: the cluster has 16 CPU cores, and each worker needs its own"),
        (gpus, "auto", 3, "--workers 3: the cluster has 2 GPUs, and each worker needs its own"),
        (plain, "cuda", None, "--ray: model.device is 'cuda', but the cluster has no GPU"),
        (gpus, "cuda:1", 1, "--ray: model.device is 'cuda:1'; on a cluster it is auto, cuda or cpu"),
    ):
        with pytest.raises(InputError) as caught:
            needs(nodes, asked, count)
        assert str(caught.value) == message


def test_an_address_that_does_not_answer_is_refused_before_anything_is_loaded(tmp_path: Path, capsys: CAUGHT) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nobody listens
        code = main(["run", "demo", "--ray", f"127.0.0.1:{port}", "--output-dir", str(tmp_path)])
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert capsys.readouterr().err == f"--ray 127.0.0.1:{port}: nothing answers there: Connection refused\n"
    assert main(["run", "demo", "--ray", "cluster", "--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "--ray cluster: is no address; give HOST:PORT, auto, or local\n"


def test_who_listens_but_is_not_ray_is_refused_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    monkeypatch.setattr(ray_workers, "ANSWERS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        with pytest.raises(InputError) as caught:
            ray_workers.check_address(f"127.0.0.1:{port}")
    assert str(caught.value) == f"--ray 127.0.0.1:{port}: who listens there did not answer as Ray in 0.1 seconds"
