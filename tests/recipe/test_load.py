from __future__ import annotations

import os
from pathlib import Path

import pytest

from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import RecipeError, load_recipe, resolved_yaml
from tests.conftest import RECIPE


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [str(problem) for problem in caught.value.problems]


def aliases(levels: int) -> bytes:
    """Lists, each of which holds the one before nine times."""
    lines = ["l0: &l0 [x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines).encode()


def with_line(path: Path, line: str) -> Path:
    """The example recipe with one more line: number 12."""
    assert RECIPE.count("\n") == 11
    path.write_text(f"{RECIPE}{line}\n", encoding="utf-8")
    return path


def test_valid_recipe_has_values_and_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert (recipe.seed, recipe.train.max_steps, recipe.optimizer.betas) == (42, 10, (0.9, 0.98))
    assert recipe.backbone.name == "tests.recipe.example_plugins:Backbone"
    assert recipe.backbone.options_dict() == {"width": 32}
    assert recipe.pruning is not None and recipe.pruning.head_trimmer is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sed: 1", "sed: unknown key; did you mean seed?"),
        ("learning_rate: 1", "learning_rate: unknown key here; did you mean optimizer.learning_rate?"),
        ("optimizer: {lr: 1}", "optimizer.lr: unknown key; did you mean learning_rate?"),
        ("evaluate: {zzz: 1}", "evaluate.zzz: unknown key; valid here: split, batch_size, max_instances"),
        ("seed: one", "seed: expected a whole number, found 'one'"),
        ("seed: '1'", "seed: expected a whole number, found '1'"),
        ("seed: true", "seed: expected a whole number, found true"),
        ("seed: 1.5", "seed: expected a whole number, found 1.5"),
        ("seed: 010", "seed: expected a whole number, found '010'"),
        ("seed: -1", "seed: must be at least 0, found -1"),
        ("description: 3", "description: expected text, found 3"),
        ("evaluate: 3", "evaluate: expected a section (key: value), found 3"),
        ("evaluate:", "evaluate: expected a section (key: value), found nothing (null)"),
        (
            "strategy: {curriculum: {enabled: yes}}",
            "strategy.curriculum.enabled: expected true or false, found 'yes'",
        ),
        ("strategy: {curriculum: {end_ratio: 0}}", "strategy.curriculum.end_ratio: must be above 0, found 0"),
        (
            "strategy: {cost_loss: {on: mac}}",
            "strategy.cost_loss.on: expected 'kept_fraction' or 'macs', found 'mac'; did you mean macs?",
        ),
        ("optimizer: {betas: 3}", "optimizer.betas: expected a list, found 3"),
        ("optimizer: {betas: [0.9, x]}", "optimizer.betas[1]: expected a number, found 'x'"),
        ("optimizer: {eps: .nan}", "optimizer.eps: expected a finite number, found nan"),
        ("logging: {report_to: wandb}", "logging.report_to: expected a list, found 'wandb'"),
        ("schema_version: 2", "schema_version: expected 1, found 2"),
        ("train: {max_steps: 5}", "train: duplicate key, first given in line 11"),
        ("[a, b]: 1", "keys must be plain text"),
        ("seed: !!python/name:os.system", "seed: could not determine a constructor for the tag"),
        ("seed: !!bool maybe", "seed: 'maybe' is no value of the tag !!bool"),
        ("seed: !!int ''", "seed: '' is no value of the tag !!int"),
        ("description: !!timestamp x", "description: 'x' is no value of the tag !!timestamp"),
        ("logging: &a {report_to: *a}", "logging.report_to: an alias (*name) contains itself"),
    ],
)
def test_wrong_line(recipe_file: Path, line: str, expected: str) -> None:
    found = problems(with_line(recipe_file, line))
    assert any(text.startswith(f"r.yaml:12: {expected}") for text in found), found


def test_all_problems_at_once_in_the_order_of_their_lines(recipe_file: Path) -> None:
    text = (
        RECIPE.replace("width: 32", "widht: 32")
        .replace("vision: 0.5", "vision: 1.5")
        .replace("max_steps", "max_step")
    )
    recipe_file.write_text(f"{text}seed: x\n", encoding="utf-8")
    assert problems(recipe_file, "evaluate.split=1") == [
        "r.yaml:2: backbone.widht: unknown key; did you mean width?",
        "r.yaml:8: pruning.target_sparsity.token.vision: must be below 1, found 1.5",
        "r.yaml:11: train.max_step: unknown key; did you mean max_steps?",
        "r.yaml:12: seed: expected a whole number, found 'x'",
        'override "evaluate.split=1": evaluate.split: expected text, found 1',
    ]


def test_several_problems_are_one_error_with_exit_code_2(recipe_file: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(with_line(recipe_file, "sed: 1"), ["seed=x"])
    assert caught.value.exit_code == 2
    assert str(caught.value).splitlines()[0] == "2 problems:"


def test_missing_keys(recipe_file: Path) -> None:
    recipe_file.write_text("seed: 1\nbackbone: {width: 3}\n", encoding="utf-8")
    assert problems(recipe_file) == [
        "r.yaml:1: output_dir: required key is missing",
        "r.yaml:1: task: required key is missing",
        "r.yaml:1: train: required key is missing",
        "r.yaml:2: backbone.name: required key is missing",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "{max_steps: 10}",
            "{}",
            "r.yaml:11: train: give exactly one of num_train_epochs and max_steps, found neither",
        ),
        (
            "{max_steps: 10}",
            "{max_steps: 10, num_train_epochs: 1}",
            "r.yaml:11: train: give exactly one of num_train_epochs and max_steps, found both",
        ),
        (
            "target_sparsity:\n    token: {vision: 0.5, text: 0.2}",
            "temperature: 1",
            "r.yaml:6: pruning: give target_sparsity or target_speedup (or both); "
            "`pruning: null` means plain fine-tuning",
        ),
        (
            "token: {vision: 0.5, text: 0.2}",
            "head: {cross: 0.3}",
            "r.yaml:6: pruning: target_sparsity asks for cross_head.vision = 0.3, but head_trimmer is null",
        ),
        (
            '{name: "tests.recipe.example_plugins:Trimmer"}',
            "null",
            "r.yaml:6: pruning: token_trimmer and head_trimmer are both null; "
            "`pruning: null` means plain fine-tuning",
        ),
        (
            "{vision: 0.5, text: 0.2}\n",
            "{vision: 0.5}\n    head: {cross: 1.5}\n",
            "r.yaml:9: pruning.target_sparsity.head.cross: must be below 1, found 1.5",
        ),
    ],
)
def test_sections_that_contradict_themselves(recipe_file: Path, old: str, new: str, expected: str) -> None:
    assert old in RECIPE
    recipe_file.write_text(RECIPE.replace(old, new), encoding="utf-8")
    assert problems(recipe_file) == [expected]


def test_cross_is_one_number_or_two(recipe_file: Path) -> None:
    head = "pruning.head_trimmer={name: 'tests.recipe.example_plugins:Trimmer'}"
    one = load_recipe(recipe_file, [head, "pruning.target_sparsity.head={vision: 0.1, cross: 0.3}"])
    two = load_recipe(recipe_file, [head, "pruning.target_sparsity.head.cross={vision: 0.3, text: 0.4}"])
    assert one.pruning and one.pruning.target_sparsity and two.pruning and two.pruning.target_sparsity
    assert one.pruning.target_sparsity.groups() == {
        "head.decoder": 0.0,
        "cross_head.decoder": 0.3,
        "token.vision": 0.5,
        "token.text": 0.2,
        "head.vision": 0.1,
        "head.text": 0.0,
        "cross_head.vision": 0.3,
        "cross_head.text": 0.3,
    }
    assert two.pruning.target_sparsity.groups()["cross_head.text"] == 0.4


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "example_plugins:Trimmer",
            "example_plugins:NotAPlugin",
            "r.yaml:9: pruning.token_trimmer.name: trimmer 'tests.recipe.example_plugins:NotAPlugin' "
            "has no Options class",
        ),
        (
            "example_plugins:Trimmer",
            "example_plugins:Nothing",
            "r.yaml:9: pruning.token_trimmer.name: trimmer 'tests.recipe.example_plugins:Nothing': "
            "module tests.recipe.example_plugins has no Nothing",
        ),
        (
            "tests.recipe.example_plugins:Task",
            "no.such.module",
            "r.yaml:4: task.name: cannot import task 'no.such.module': No module named 'no'",
        ),
        ("images: 10", "image: 10", "r.yaml:5: task.data.image: unknown key; did you mean images?"),
        ("images: 10", "images: x", "r.yaml:5: task.data.images: expected a whole number, found 'x'"),
        (
            "example_plugins:Data",
            "example_plugins:Nothing",
            "r.yaml:5: task.data: data set 'tests.recipe.example_plug",
        ),
        (
            "width: 32",
            "layers: [1, x]",
            "r.yaml:2: backbone.layers[1]: expected a whole number, found 'x'",
        ),
    ],
)
def test_plugin_sections(recipe_file: Path, old: str, new: str, expected: str) -> None:
    recipe_file.write_text(RECIPE.replace(old, new), encoding="utf-8")
    (found,) = problems(recipe_file)
    assert found.startswith(expected)


def test_branches_of_a_union_are_one_problem(recipe_file: Path) -> None:
    (found,) = problems(recipe_file, "task.max_length=[1]")
    assert found == (
        'override "task.max_length=[1]": task.max_length: '
        "expected a whole number, found a list; or expected text, found a list"
    )


def test_unknown_plugin_names_the_nearest_and_all(recipe_file: Path) -> None:
    (found,) = problems(recipe_file, "pruning.token_trimmer.name=cross_modl")
    assert "unknown trimmer 'cross_modl'; did you mean cross_modal? (valid: " in found


def test_numbers_without_a_dot_are_numbers(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["optimizer.learning_rate=1e-5", "train.max_steps=1e3", "seed=1_000"])
    assert recipe.optimizer.learning_rate == 0.00001
    assert recipe.train.max_steps == 1000
    assert recipe.seed == 1000


def test_overrides(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "backbone.width=8",
            "seed=1",
            "seed=2",
            "pruning.calibrate=null",
            "train={num_train_epochs: 2}",
            "description=a=b",
        ],
    )
    assert recipe.backbone.options_dict() == {"width": 8}
    assert (recipe.seed, recipe.description) == (2, "a=b")
    assert recipe.pruning is not None and recipe.pruning.calibrate is None
    assert (recipe.train.num_train_epochs, recipe.train.max_steps) == (2, None)
    assert load_recipe(recipe_file, ["pruning=null"]).pruning is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=1", "optimizer.lr: unknown key; did you mean learning_rate?"),
        ("backbone.widht=1", "backbone.widht: unknown key; did you mean width?"),
        ("train.max_steps=x", "train.max_steps: expected a whole number, found 'x'"),
        ("seed", "expected key=value, such as optimizer.learning_rate=1e-5"),
        ("a..b=1", "expected key=value, such as optimizer.learning_rate=1e-5"),
        (
            "output_dir.x=1",
            "output_dir.x: output_dir is 'runs/example', not a section; override it as a whole",
        ),
        ("seed=[1", "seed: not valid YAML: while parsing a flow sequence, expected"),
        ("evaluate={split: a, split: b}", "evaluate.split: duplicate key"),
    ],
)
def test_wrong_overrides(recipe_file: Path, override: str, expected: str) -> None:
    found = problems(recipe_file, override)
    assert any(text.startswith(f'override "{override}": {expected}') for text in found), found


@pytest.mark.parametrize("text", ["[" * 350 + "]" * 350, "[" * 480 + "]" * 480, "[" * 5000])
def test_nested_overrides(recipe_file: Path, text: str) -> None:
    (found,) = problems(recipe_file, f"backbone.width={text}")
    assert "backbone.width: not a recipe: nested too deeply" in found


def test_values_that_no_file_takes(recipe_file: Path) -> None:
    recipe_file.write_text(RECIPE.replace("runs/example", '"a\\0b"'), encoding="utf-8")
    assert problems(recipe_file, 'task.data={name: jsonl, data_dir: "a\\0b"}') == [
        "r.yaml:1: output_dir: 'a\\x00b' has a character that no file takes (NUL)",
        'override "task.data={name: jsonl, data_dir: "a\\0b"}": task.data.data_dir: \'a\\x00b\' has a '
        "character that no file takes (NUL)",
    ]
    assert "has half of a character" in problems(recipe_file, 'output_dir="a\\ud83d"')[-1]


@pytest.mark.parametrize("tag", ["map", "seq", "set", "omap", "pairs"])
def test_a_scalar_is_no_section(recipe_file: Path, tag: str) -> None:
    found = problems(recipe_file, f"logging=!!{tag} x")
    assert f"override \"logging=!!{tag} x\": logging: 'x' is no value of the tag !!{tag}" in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "r.yaml: the file is empty"),
        (b"# only a comment\n", "r.yaml: the file is empty"),
        (b"- a\n- b\n", "r.yaml:1: expected a mapping of keys to values, found a list"),
        (b"hello\n", "r.yaml:1: expected a mapping of keys to values, found 'hello'"),
        (b"seed: 1\ndescription: caf\xe9\n", "r.yaml: not UTF-8 text (byte 24 is 0xe9)"),
        (b"seed: 1\ntrain: {a: 1\n", "r.yaml:3: not valid YAML: while parsing a flow mapping"),
        (b"train:\n\tmax_steps: 1\n", "r.yaml:2: not valid YAML: while scanning for the next token"),
        (b"seed: 1\n---\nseed: 2\n", "r.yaml:2: not valid YAML: expected a single document"),
        (b"seed: \x00\n", "r.yaml: not valid YAML: unacceptable character #x0000"),
        (b"<<: 3\n", "r.yaml:1: expected a mapping or list of mappings for merging"),
        (b"[" * 5000, "r.yaml: not a recipe: nested too deeply"),
        (b"seed: 1\ntask: " + b"[" * 350 + b"]" * 350, "r.yaml:2: not a recipe: nested too deeply"),
        (aliases(9), "r.yaml:6: not a recipe: it holds too much"),
    ],
)
def test_files_that_are_no_recipes(recipe_file: Path, content: bytes, message: str) -> None:
    recipe_file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_file)
    assert str(caught.value).startswith(message)


def test_data_is_read_strictly_and_without_infinity(recipe_file: Path) -> None:
    data = "task={name: vqa, data: {name: scenes, grid: '6', seed: true, question_weights: {count: .inf}}}"
    assert {text.partition('": ')[2] for text in problems(recipe_file, data)} >= {
        "task.data.grid: expected a whole number, found '6'",
        "task.data.seed: expected a whole number, found true",
        "task.data.question_weights.count: expected a finite number, found inf",
    }


def test_home_of_the_user(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["output_dir=~/runs/mine", "description=~ 3 hours"])
    assert recipe.output_dir == os.path.expanduser("~/runs/mine")
    assert recipe.description == "~ 3 hours"


def test_missing_file_and_directory(recipe_file: Path) -> None:
    with pytest.raises(UserError, match="nope.yaml: no such recipe\n  shipped recipes: "):
        load_recipe("nope.yaml")
    Path("run").mkdir()
    with pytest.raises(UserError, match="run: is a directory, not a recipe"):
        load_recipe("run")
    Path("run/recipe.yaml").touch()
    with pytest.raises(UserError, match="its recipe is run.recipe.yaml"):
        load_recipe("run")
    with pytest.raises(UserError, match="is not a regular file"):
        load_recipe(os.devnull)


def test_windows_line_ends_and_byte_order_mark(recipe_file: Path) -> None:
    recipe_file.write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert load_recipe(recipe_file).output_dir == "runs/example"


def test_merge_keys_are_not_duplicates(recipe_file: Path) -> None:
    merged = load_recipe(recipe_file, ["logging={<<: {logging_steps: 3, report_to: []}, logging_steps: 4}"])
    assert (merged.logging.logging_steps, merged.logging.report_to) == (4, [])


def test_resolved_recipe_is_complete_and_reads_back_equal(recipe_file: Path) -> None:
    text = resolved_yaml(load_recipe(recipe_file, ["optimizer.learning_rate=1e-5"]))
    assert "images: 10" in text and "hidden_dim: 96" in text and "layers:" in text
    Path("resolved.yaml").write_text(text, encoding="utf-8")
    again = load_recipe("resolved.yaml")
    assert again.optimizer.learning_rate == 1e-5
    assert resolved_yaml(again) == text


def test_text_that_looks_like_a_number_survives(recipe_file: Path) -> None:
    text = resolved_yaml(load_recipe(recipe_file, ["description='12e4'"]))
    Path("resolved.yaml").write_text(text, encoding="utf-8")
    assert load_recipe("resolved.yaml").description == "12e4"
