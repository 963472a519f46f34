"""Who registers adapters, and what goes wrong with that: installed packages, plugin files, duplicates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachedit_cli import registry
from cachedit_cli.errors import InputError
from cachedit_cli.registry import BlockAdapterRegister, BlockList, ModelAdapter
from cachedit_cli.terms.pattern import ForwardPattern

PLUGIN = """\
from cachedit_cli.registry import BlockList, ModelAdapter, register
from cachedit_cli.terms.pattern import ForwardPattern

register(ModelAdapter(name="{name}", transformer="{cls}", lists=(BlockList("blocks", ForwardPattern.Pattern_3),)))
"""


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test a copy of the registry."""
    registry.all_adapters()
    now = registry._registry
    copy = replace(
        now,
        adapters=dict(now.adapters),
        functions=dict(now.functions),
        origins=dict(now.origins),
        plugins=dict(now.plugins),
        broken=dict(now.broken),
    )
    monkeypatch.setattr(registry, "_registry", copy)
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("cachedit_plugin_"):
            del sys.modules[name]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)

    def write(content: str, name: str = "my_model.py") -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return name

    return write


def message(path: str) -> str:
    with pytest.raises(InputError) as raised:
        registry.load_plugin(path)
    return str(raised.value)


def test_a_plugin_file_adds_its_adapters_and_runs_once(plugin: Callable[..., str]) -> None:
    path = plugin(PLUGIN.format(name="mine", cls="MyTransformer"))
    (made,) = registry.load_plugin(path)
    assert made.lists == (BlockList("blocks", ForwardPattern.Pattern_3),)
    assert registry.find("MyTransformer") is registry.by_name("mine") is made
    assert registry.origin(made) == "my_model.py"
    assert registry.load_plugin(Path(path).resolve()) == (made,)


def test_a_plugin_that_raises_is_named_with_line_and_error_and_leaves_nothing(plugin: Callable[..., str]) -> None:
    path = plugin(PLUGIN.format(name="mine", cls="MyTransformer") + "\n\ndef inner():\n    return 1 / 0\n\n\ninner()\n")
    assert message(path) == "--plugin: my_model.py:8: ZeroDivisionError: division by zero"
    assert registry.find("MyTransformer") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("x = (\n", "--plugin: my_model.py:1: SyntaxError: '(' was never closed"),
        ("\nimport no_such_module_at_all\n", "--plugin: my_model.py:2: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)\n", "--plugin: my_model.py:1: SystemExit: 3"),
        ("x = 1\n", "--plugin: my_model.py: registers no adapter"),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why(plugin: Callable[..., str], content: str, expected: str) -> None:
    assert message(plugin(content)).startswith(expected)


@pytest.mark.parametrize("path", ["missing.py", "."])
def test_a_plugin_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert message(path) == f"--plugin: {path}: no such Python file"


def test_two_plugins_for_one_class_are_both_named(plugin: Callable[..., str]) -> None:
    registry.load_plugin(plugin(PLUGIN.format(name="mine", cls="MyTransformer")))
    assert message(plugin(PLUGIN.format(name="other", cls="MyTransformer"), "other.py")) == (
        "--plugin: other.py:4: two adapters for MyTransformer: 'mine' of my_model.py and 'other' of other.py; "
        "there can only be one"
    )


def test_a_plugin_for_a_shipped_class_is_refused(plugin: Callable[..., str]) -> None:
    said = message(plugin(PLUGIN.format(name="mine", cls="FluxTransformer2DModel")))
    assert "two adapters for FluxTransformer2DModel: 'flux' of cachedit and 'mine' of my_model.py" in said
    assert registry.by_name("flux").pipelines


def test_a_plugin_may_register_a_function_for_a_pipeline(plugin: Callable[..., str]) -> None:
    path = plugin(
        "from cachedit_cli.registry import BlockAdapterRegister\n\n\n"
        '@BlockAdapterRegister.register("Mine")\ndef mine(pipe):\n    return pipe\n'
    )
    assert registry.load_plugin(path) == ()
    function = BlockAdapterRegister.find("MinePipeline")
    assert function is not None
    assert function(3) == 3
    BlockAdapterRegister.unregister("Mine")
    assert BlockAdapterRegister.find("MinePipeline") is None


def test_a_program_may_register_adapters_of_its_own() -> None:
    mine = ModelAdapter(name="mine", transformer="MyTransformer", lists=())
    assert registry.register(mine) is mine
    assert registry.origin(mine) == "this program"
    with pytest.raises(InputError, match="two adapters for MyTransformer: 'mine' of this program and 'mine' of this"):
        registry.register(replace(mine))


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^no adapter is called 'qwen_image' \(did you mean 'qwen-image'\?\)$"):
        registry.by_name("qwen_image")


def test_families_have_names_of_their_own() -> None:
    every = [adapter.name for adapter in registry.all_adapters()]
    assert every == sorted(set(every))


ASK = """\
import json, sys
from cachedit_cli import registry
from cachedit_cli.errors import InputError

def message(name):
    try:
        return registry.by_name(name).transformer
    except InputError as error:
        return str(error)

print(json.dumps({
    "torch": "torch" in sys.modules,
    "good": [registry.by_name("good").transformer, registry.origin(registry.by_name("good"))],
    "single": registry.by_name("single").transformer,
    "problems": registry.problems(),
    "broken": message("broken"),
    "unknown": message("godo"),
    "flux": message("flux"),
}))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process says in whose path lie two packages with adapters."""
    folder = tmp_path_factory.mktemp("site")
    good = PLUGIN.format(name="good", cls="GoodTransformer")
    single = PLUGIN.format(name="single", cls="SingleTransformer").replace("register(", "adapter = (")
    (folder / "good_adapters.py").write_text(good, encoding="utf-8")
    (folder / "single_adapter.py").write_text(single, encoding="utf-8")
    (folder / "broken_adapters.py").write_text(good.replace("Good", "Half") + "\nimport gone\n", encoding="utf-8")
    (folder / "greedy_adapters.py").write_text(good.replace("GoodTransformer", "SD3Transformer2DModel"))
    for package, entries in (
        ("good-adapters", "good = good_adapters\nsingle = single_adapter:adapter\n"),
        ("broken-adapters", "broken = broken_adapters\ngreedy = greedy_adapters\n"),
    ):
        info = folder / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[cachedit.adapters]\n{entries}")
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", ASK], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_installed_packages_bring_adapters_through_the_entry_point_group(asked: dict[str, Any]) -> None:
    assert asked["good"] == ["GoodTransformer", "the package good-adapters 1.2"]
    assert asked["single"] == "SingleTransformer"
    assert not asked["torch"]


def test_a_broken_package_is_named_and_takes_nothing_else_along(asked: dict[str, Any]) -> None:
    broken = (
        "the adapter 'broken' of the package broken-adapters 1.2 cannot be used: "
        "ModuleNotFoundError: No module named 'gone'"
    )
    greedy = (
        "the adapter 'greedy' of the package broken-adapters 1.2 cannot be used: two adapters for "
        "SD3Transformer2DModel: 'sd3' of cachedit and 'good' of the package broken-adapters 1.2; there can only be one"
    )
    assert sorted(asked["problems"]) == [broken, greedy]
    assert asked["broken"] == broken
    assert asked["unknown"].splitlines()[0] == "no adapter is called 'godo' (did you mean 'good'?)"
    assert sorted(asked["unknown"].splitlines()[1:]) == [broken, greedy]
    assert asked["flux"] == "FluxTransformer2DModel"
