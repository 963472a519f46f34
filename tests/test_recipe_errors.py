"""What is wrong with a recipe is said at once, with its place, and in words that help."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedit_cli.errors import InputError
from cachedit_cli.recipe import load

HEAD = "version: 1\nmodel: {id: demo}\ngenerate: {prompt: a}\n"  # three lines of a valid recipe


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def message(content: str | bytes) -> str:
    """Return what is said of a recipe in the file r.yaml."""
    Path("r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        load("r.yaml")
    return str(error.value)


def test_everything_is_reported_at_once_in_the_order_of_the_file() -> None:
    recipe = """\
version: 1
naem: mine
model:
  id: demo
  dtype: float8
prompt: a cat
cache:
  type: DBCash
  max_warmup_step: 3
  residual_diff_threshold: high
  Fn_compute_blocks: 2.5
  Bn_compute_blocks: -1
  warmup_interval: true
  audit: yes
  cfg_compute_first: 1
calibrator: {taylorseer_order: 7}
generate:
  prompts: []
  seed: -1
  num_inference_steps: "28"
  height: 1e3
  guidance_scale: .nan
  extra: {generator: 3, height: 64}
output: here
"""
    assert message(recipe).splitlines() == [
        "r.yaml:2:1: naem: unknown key (did you mean 'name'?)",
        "r.yaml:5:10: model.dtype: 'float8' is unknown (did you mean 'float32'?)",
        "r.yaml:6:1: prompt: unknown key (did you mean 'generate.prompt'?)",
        "r.yaml:8:9: cache.type: 'DBCash' is unknown (did you mean 'DBCache'?)",
        "r.yaml:9:3: cache.max_warmup_step: unknown key (did you mean 'max_warmup_steps'?)",
        "r.yaml:10:28: cache.residual_diff_threshold: 'high' is not a number",
        "r.yaml:11:22: cache.Fn_compute_blocks: 2.5 is not a whole number",
        "r.yaml:12:22: cache.Bn_compute_blocks: -1 is not a whole number >= 0",
        "r.yaml:13:20: cache.warmup_interval: true is not a whole number",
        "r.yaml:14:10: cache.audit: 'yes' is not true or false (write true)",
        "r.yaml:15:22: cache.cfg_compute_first: 1 is not true or false",
        "r.yaml:16:1: calibrator.type: missing: `hold` repeats the last computed change, "
        "`taylorseer` continues the last few as a Taylor series, `auto` takes whichever was best so far at that "
        "distance.",
        "r.yaml:16:32: calibrator.taylorseer_order: 7 is not a whole number from 1 to 4",
        "r.yaml:18:12: generate.prompts: is empty (give at least one, or leave the key out)",
        "r.yaml:19:9: generate.seed: -1 is too small (at least 0)",
        "r.yaml:20:24: generate.num_inference_steps: '28' is not a whole number (write it without quotes)",
        "r.yaml:21:11: generate.height: 1000.0 is not a whole number",
        "r.yaml:22:19: generate.guidance_scale: nan is not a finite number",
        "r.yaml:23:11: generate.extra.generator: cachedit gives this argument itself (write generate.seed)",
        "r.yaml:23:25: generate.extra.height: cachedit gives this argument itself (write generate.height)",
        "r.yaml:24:9: output: 'here' is not a mapping (lines `key: value`)",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "r.yaml: is empty (`cachedit recipes show demo` prints a recipe to start from)"),
        ("# later\n", "r.yaml: is empty (`cachedit recipes show demo` prints a recipe to start from)"),
        ("---\n...\n", "r.yaml: is empty (`cachedit recipes show demo` prints a recipe to start from)"),
        ("- a\n", "r.yaml:1:1: a list is no recipe, which is a mapping (lines `key: value`)"),
        ("a cat\n", "r.yaml:1:1: 'a cat' is no recipe, which is a mapping (lines `key: value`)"),
        ("12\n", "r.yaml:1:1: 12 is no recipe, which is a mapping (lines `key: value`)"),
        ("a: b: c\n", "r.yaml:1:5: not valid YAML: a second ':' in one value (put the value in quotes)"),
        ("model:\n\tid: demo\n", "r.yaml:2:1: not valid YAML: a tab cannot indent YAML (use spaces)"),
        ("a: 1\n b: 2\n", "r.yaml:2:3: not valid YAML: a second ':' in one value (put the value in quotes)"),
        ("a:\n  - b\n c: 2\n", "r.yaml:3:2: not valid YAML: the indentation does not fit the lines above"),
        ("a: [1, 2\nb: 3\n", "r.yaml:2:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("a: 'b\n", "r.yaml:2:1: not valid YAML: found unexpected end of stream"),
        (HEAD + "---\n" + HEAD, "r.yaml:4:1: a second document begins; a recipe is one document"),
        (b"\x89PNG\r\n\x1a\n\0\0", "r.yaml: is no text in UTF-8 (byte 0x89 at offset 0)"),
        ("version: 1\n".encode("utf-16"), "r.yaml: is no text in UTF-8 (byte 0xff at offset 0)"),
        ("a: b\nc: \0\n", "r.yaml:2:4: holds the character U+0000, which no text has"),
        (b"#" * (2**20 + 1), "r.yaml: is larger than 1 MiB, so it is hardly a recipe"),
        (b"#" * 10**7, "r.yaml: is larger than 1 MiB, so it is hardly a recipe"),
        ("a: " + "[" * 10**5, "r.yaml:1:36: nested deeper than 32 levels"),
        ("- a\n" * 10**5, "r.yaml:10000:3: more than 10,000 values, those of an alias counted each time it is used"),
    ],
)
def test_a_file_that_is_no_recipe_at_all(content: str | bytes, expected: str) -> None:
    assert message(content) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("version: 2\nzzz: 1\n", "r.yaml:1:10: version: this cachedit reads version 1 of the recipe format, not 2"),
        (
            "name: mine\n",
            "r.yaml:1:1: version: missing: Version of the recipe format: 1.\n"
            "r.yaml:1:1: model: missing: Which model, and how it is loaded.\n"
            "r.yaml:1:1: generate: missing: What is drawn, and with which arguments of the pipeline.",
        ),
        (
            HEAD.replace("1", "'1'"),
            "r.yaml:1:10: version: '1' is not a whole number (write it without quotes)",
        ),
        (HEAD.replace("1", "true"), "r.yaml:1:10: version: true is not a whole number"),
        (HEAD.replace("1", "1.0"), "r.yaml:1:10: version: 1.0 is not a whole number"),
        (
            HEAD.replace("{id: demo}", "{}"),
            "r.yaml:2:1: model.id: missing: Hub id (`owner/name`), local folder of a pipeline, a file of a "
            "transformer's weights with `config`, or `demo`: the bundled model.",
        ),
        (HEAD.replace("{id: demo}", "demo"), "r.yaml:2:8: model: 'demo' is not a mapping (lines `key: value`)"),
        (
            HEAD.replace("prompt: a", "seed: 1"),
            "r.yaml:3:1: generate: needs a prompt, or prompts "
            "(a pipeline that takes none gets its arguments in `extra`)",
        ),
        (HEAD.replace("prompt: a", "prompt: 5"), "r.yaml:3:20: generate.prompt: 5 is not text (put it in quotes)"),
        (
            HEAD.replace("prompt: a", "prompts: a"),
            "r.yaml:3:21: generate.prompts: 'a' is neither a list nor a file that ends in .txt, .csv, .jsonl "
            "(one prompt is `prompt`)",
        ),
        (
            HEAD.replace("a}", "a, seeds: [1, 1]}"),
            "r.yaml:3:30: generate.seeds: a seed is given twice, which draws the same picture twice",
        ),
        (
            HEAD.replace("a}", "a, num_images: 1000000}"),
            "r.yaml:3:35: generate.num_images: 1000000 is too large (at most 10000)",
        ),
        (HEAD + "name: ../x\n", "r.yaml:4:7: name: '../x' is not a name of at most 64 letters, digits and -_."),
        (HEAD + "output: {dir: ''}\n", "r.yaml:4:15: output.dir: is empty (give at least one, or leave the key out)"),
        (HEAD + "output: {format: jpg}\n", "r.yaml:4:18: output.format: 'jpg' is unknown (did you mean 'jpeg'?)"),
        (HEAD + "adapter: flix\n", "r.yaml:4:10: adapter: no adapter is called 'flix' (did you mean 'flux'?)"),
        (
            HEAD + "zzz: 1\n",
            "r.yaml:4:1: zzz: unknown key (known here are version, name, description, model, adapter, "
            "blocks, patch_functor, cache, calibrator, generate, output, extends)",
        ),
        (
            HEAD + "Fn_compute_blocks: 1\n",
            "r.yaml:4:1: Fn_compute_blocks: unknown key (did you mean 'cache.Fn_compute_blocks'?)",
        ),
        (HEAD + "cache: {type: 5}\n", "r.yaml:4:15: cache.type: 5 is not text (put it in quotes)"),
        (HEAD + "cache: {type: [x]}\n", "r.yaml:4:15: cache.type: a list is not text"),
        (
            HEAD + "cache: {type: none, Fn_compute_blocks: 1}\n",
            "r.yaml:4:21: cache.Fn_compute_blocks: not a setting of none, but of DBCache and DBPrune",
        ),
        (
            HEAD + "cache: {enable_dynamic_prune_threshold: true}\n",
            "r.yaml:4:9: cache.enable_dynamic_prune_threshold: not a setting of DBCache, but of DBPrune",
        ),
        (
            HEAD + "calibrator: {type: hold, taylorseer_order: 1}\n",
            "r.yaml:4:26: calibrator.taylorseer_order: not a setting of hold, but of taylorseer",
        ),
        (
            HEAD + "calibrator: {type: taylor}\n",
            "r.yaml:4:20: calibrator.type: 'taylor' is unknown (did you mean 'taylorseer'?)",
        ),
        (
            HEAD + "cache: {steps_computation_policy: statik}\n",
            "r.yaml:4:35: cache.steps_computation_policy: 'statik' is unknown (did you mean 'static'?)",
        ),
    ],
)
def test_a_wrong_value(content: str, expected: str) -> None:
    assert message(content) == expected


@pytest.mark.parametrize(
    ("written", "place", "expected"),
    [
        ("{policy: fats}", "5:36: ", ".policy: 'fats' is unknown (did you mean 'fast'?)"),
        ("fats", "5:27: ", ": 'fats' is neither bits (0 and 1) nor a policy (did you mean 'fast'?)"),
        ("'0101'", "5:27: ", ": begins with 0, but the first step has nothing to reuse; begin with 1"),
        ("1.5", "5:27: ", ": is neither bits (0 and 1), a policy, nor compute_bins with cache_bins"),
        ("[1, 2]", "5:31: ", ".1: 2 is too large (at most 1)"),
        ("[1, true]", "5:31: ", ".1: true is not a whole number"),
        ("[]", "5:27: ", ": () is neither bits (0 and 1) nor one of slow, medium, fast, ultra"),
        ("{}", "5:27: ", ": needs a policy, or compute_bins and cache_bins"),
        ("{compute_bins: [5]}", "5:27: ", ": cache_bins: missing; compute_bins needs it"),
        (
            "{compute_bins: [], cache_bins: [1]}",
            "5:27: ",
            ": compute_bins: empty; give the length of at least one run",
        ),
        ("{compute_bins: [-1], cache_bins: [1]}", "5:43: ", ".compute_bins.0: -1 is too small (at least 0)"),
        ("{compute_bins: [1e3], cache_bins: [1]}", "5:43: ", ".compute_bins.0: 1000.0 is not a whole number"),
        (
            "{compute_bins: [9999, 9999], cache_bins: [1]}",
            "5:27: ",
            ": compute_bins and cache_bins sum to more than 10,000 steps",
        ),
        (
            "{compute_bins: [5], cache_bins: [5]}",
            "5:27: ",
            ": compute_bins and cache_bins sum to 10, but there are 28 steps",
        ),
        ("{policy: fast, cache_bins: [5]}", "5:42: ", ".cache_bins: cannot be combined with policy (keep one of them)"),
    ],
)
def test_a_wrong_mask(written: str, place: str, expected: str) -> None:
    content = HEAD.replace("a}", "a, num_inference_steps: 28}") + f"cache:\n  steps_computation_mask: {written}\n"
    assert message(content) == f"r.yaml:{place}cache.steps_computation_mask{expected}"


def test_bins_may_be_short_where_the_pipeline_shortens_the_schedule() -> None:
    Path("r.yaml").write_text(
        HEAD.replace("a}", "a, num_inference_steps: 28, strength: 0.3}")
        + "cache: {steps_computation_mask: {compute_bins: [5], cache_bins: [5]}}\n"
    )
    assert load("r.yaml").generate.strength == 0.3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "version: 1\nmodel: {id: demo}\ngenerate: {prompt: a, seed: 1, prompts: [b], seeds: [1]}\n",
            "r.yaml:3:32: generate.prompts: cannot be combined with prompt (keep one of them)\n"
            "r.yaml:3:46: generate.seeds: cannot be combined with seed (keep one of them)",
        ),
        (
            HEAD + "blocks: [{path: transformer.a, pattern: 1}]\nadapter: flux\n",
            "r.yaml:5:1: adapter: cannot be combined with blocks (keep one of them)",
        ),
    ],
)
def test_keys_that_say_the_same_in_two_ways(content: str, expected: str) -> None:
    assert message(content) == expected


def test_each_entry_of_blocks_is_checked() -> None:
    recipe = HEAD + (
        "blocks:\n"
        "  - path: transformer\n"
        "    pattern: 9\n"
        "    params: {enable_dynamic_prune_threshold: true, enable_separate_cfg: null, Fn_compute_block: 1}\n"
        "  - params: {type: DBCache}\n"
        "  - 5\n"
        "  - {path: [transformer.a, b], pattern: 1, calibrator: {type: taylorseer, taylorseer_order: 0}}\n"
        "  - {path: [], pattern: 1, params: {steps_computation_mask: {policy: fats}}}\n"
    )
    form = "is not of the form component.list, such as 'transformer.transformer_blocks'"
    assert message(recipe).splitlines() == [
        f"r.yaml:5:11: blocks.0.path: 'transformer' {form}",
        "r.yaml:6:14: blocks.0.pattern: 9 is too large (at most 5)",
        "r.yaml:7:14: blocks.0.params.enable_dynamic_prune_threshold: not a setting of DBCache, but of DBPrune",
        "r.yaml:7:73: blocks.0.params.enable_separate_cfg: null sets nothing here (leave the key out)",
        "r.yaml:7:79: blocks.0.params.Fn_compute_block: unknown key (did you mean 'Fn_compute_blocks'?)",
        "r.yaml:8:5: blocks.1.path: missing: Where the blocks are, as `component.list`; "
        "several paths are joined and decided as one list.",
        "r.yaml:8:5: blocks.1.pattern: missing: Forward pattern, by what a block takes -> returns (h: hidden states, "
        "e: encoder hidden states): 0: h, e -> h, e; 1: h, e -> e, h; 2: h, e -> h; 3: h -> h; 4: h -> h, e; "
        "5: h -> e, h.",
        "r.yaml:8:14: blocks.1.params.type: unknown key (did you mean 'cache.type'?)",
        "r.yaml:9:5: blocks.2: 5 is not a mapping (lines `key: value`)",
        f"r.yaml:10:28: blocks.3.path.1: 'b' {form}",
        "r.yaml:10:93: blocks.3.calibrator.taylorseer_order: 0 is not a whole number from 1 to 4",
        "r.yaml:11:12: blocks.4.path: is empty (give at least one, or leave the key out)",
        "r.yaml:11:70: blocks.4.params.steps_computation_mask.policy: 'fats' is unknown (did you mean 'fast'?)",
    ]


def test_what_cannot_be_read_is_reported_with_the_rest() -> None:
    recipe = (
        "version: 1\nversion: 2\nmodel: {id: !!python/name:os.system x}\n1: one\n? [a]\n: b\n"
        "generate: {prompt: *nowhere, seed: &s [*s]}\ncache: {audit: !!bool maybe, Fn_compute_blocks: x}\n"
        'output: {dir: "\\ud800"}\n<<: 5\n'
    )
    assert message(recipe).splitlines() == [
        "r.yaml:2:1: version: the key is given twice (first on line 1)",
        "r.yaml:3:13: model.id: the tag !!python/name:os.system does not belong here (a recipe is plain data)",
        "r.yaml:4:1: a key is 1, but keys are text (put it in quotes)",
        "r.yaml:5:3: a key is a list, but keys are text",
        "r.yaml:7:20: generate.prompt: there is no &nowhere above",
        "r.yaml:7:36: generate.seed: a list is not a whole number",
        "r.yaml:7:40: generate.seed.0: *s stands inside its own value",
        "r.yaml:8:16: cache.audit: the tag !!bool does not belong here (a recipe is plain data)",
        "r.yaml:8:49: cache.Fn_compute_blocks: 'x' is not a whole number",
        "r.yaml:9:15: output.dir: holds half a character (a lone surrogate), which no file can hold",
        "r.yaml:10:5: <<: merges 5, but only mappings can be merged",
    ]


def test_exploding_aliases_are_refused_before_they_are_expanded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    expected = "more than 10,000 values, those of an alias counted each time it is used"
    assert message("\n".join(lines)) == f"r.yaml:4:45: {expected}"


def test_a_mark_of_a_line_counts_characters_and_lines_as_an_editor_does() -> None:
    assert message(HEAD.replace("prompt: a", "prompt: '\u732b\U0001f600', sed: 1").replace("\n", "\r\n")) == (
        "r.yaml:3:26: generate.sed: unknown key (did you mean 'seed'?)"
    )


def test_many_errors_are_cut_short() -> None:
    lines = message(HEAD + "".join(f"key{n}: 1\n" for n in range(150))).splitlines()
    assert len(lines) == 101
    assert lines[-1] == "... and 50 more"


def test_long_and_unprintable_text_does_not_spoil_the_message() -> None:
    said = message(HEAD + f'"\\e[31m\\n": 1\noutput: {{format: {"x" * 10**5}}}\nname: {"x" * 10**5}\n')
    assert said.splitlines()[0].startswith("r.yaml:4:1: '\\x1b[31m\\n': unknown key")
    assert all(len(line) < 700 and line.isprintable() for line in said.splitlines())


def test_a_budget_and_a_speedup_exclude_each_other_and_a_layers_choice_replaces_the_one_below() -> None:
    assert message(HEAD + "cache:\n  budget: 4\n  speedup: 2.0\n") == (
        "r.yaml:6:3: cache.speedup: cannot be combined with budget (keep one of them)"
    )
    Path("r.yaml").write_text(HEAD + "cache:\n  budget: 4\n")
    config = load("r.yaml", ["cache.speedup=2"]).cache_config(28)
    assert config is not None
    assert (config.budget, config.speedup) == (None, 2)
