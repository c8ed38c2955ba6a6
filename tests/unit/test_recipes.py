"""Adapters that differ in nothing but the seed are one recipe; names that tell recipes apart."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lingact.errors import UserError
from lingact.evaluation.recipes import Recipe, find_recipes
from lingact.files.atomic import write_json
from lingact.models.adapter_sources import IDENTITY, PRIVATE, expand_adapters, find_adapter

TRAINING: dict[str, Any] = {
    "lang": ["ml"],
    "seed": 0,
    "device": "cpu",
    "cache": "outputs/cache",
    "tracking": {"mode": "offline", "group": None},
    "loss": {"gap": {"weight": 1.0, "objective": "activation"}, "retention": {"weight": 1.0}, "predicted_share": 1.0},
    "model": {"name": "google/gemma-2-2b"},
}


def peft_folder(path: Path) -> str:
    write_json(path / "adapter_config.json", {"peft_type": "LORA"})
    return str(path)


def trained(path: Path, **changes: Any) -> str:
    """A run folder of train.py, as far as it matters here."""
    peft_folder(path / "adapter")
    (path / "config.yaml").write_text(yaml.safe_dump(TRAINING | changes), encoding="utf-8")
    return str(path)


def gap(**changes: Any) -> dict[str, Any]:
    return {**TRAINING["loss"], "gap": TRAINING["loss"]["gap"] | changes}


def recipes_of(given: list[str]) -> list[Recipe]:
    """What is no folder here has been downloaded, and does not tell how it was trained."""
    return find_recipes({each: find_adapter(each) if Path(each).is_dir() else Path("downloaded") for each in expand_adapters(given)})


def names(recipes: list[Recipe]) -> dict[str, list[str]]:
    return {recipe.label: [adapter.name for adapter in recipe.adapters] for recipe in recipes}


def test_one_adapter_is_the_adapter(tmp_path: Path) -> None:
    (recipe,) = recipes_of([trained(tmp_path / "run")])
    assert (recipe.label, recipe.targets) == ("adapter", ("ml",))
    (adapter,) = recipe.adapters
    assert (adapter.given, adapter.name, adapter.training) == (str(tmp_path / "run"), "adapter", TRAINING)
    assert recipes_of([]) == []


def test_seeds_of_a_recipe_are_together(tmp_path: Path) -> None:
    given = [
        trained(tmp_path / "a", seed=3),
        trained(tmp_path / "b", seed=1, device="cuda", cache="/tmp/elsewhere", tracking={"mode": "online", "group": "seeds"}),
    ]
    (recipe,) = recipes_of(given)
    assert names([recipe]) == {"adapter": ["adapter_seed3", "adapter_seed1"]}
    assert [adapter.given for adapter in recipe.adapters] == given


def test_the_same_seed_twice_is_told_apart(tmp_path: Path) -> None:
    recipes = recipes_of([trained(tmp_path / "a"), trained(tmp_path / "b", device="cuda"), trained(tmp_path / "c", seed=1)])
    assert names(recipes) == {"adapter": ["adapter_seed0_0", "adapter_seed0_1", "adapter_seed1"]}


def test_recipes_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    given = [
        trained(tmp_path / "a"),
        trained(tmp_path / "b", lang=["hi"]),
        trained(tmp_path / "c", seed=1),
        trained(tmp_path / "d", lang=["ml", "hi"]),
    ]
    recipes = recipes_of(given)
    assert names(recipes) == {"lang ml": ["lang ml_seed0", "lang ml_seed1"], "lang hi": ["lang hi"], "lang ml,hi": ["lang ml,hi"]}
    assert [recipe.targets for recipe in recipes] == [("ml",), ("hi",), ("ml", "hi")]


def test_several_settings_are_named_without_their_sections(tmp_path: Path) -> None:
    recipes = recipes_of([trained(tmp_path / "a"), trained(tmp_path / "b", lang=["hi"], loss=gap(weight=0.5))])
    assert list(names(recipes)) == ["lang ml, weight 1.0", "lang hi, weight 0.5"]


def test_a_setting_that_only_one_has_is_named_there(tmp_path: Path) -> None:
    recipes = recipes_of([trained(tmp_path / "one" / "a"), trained(tmp_path / "two" / "b", loss=gap(margin=0.1))])
    assert list(names(recipes)) == ["one_a", "margin 0.1"]


def test_long_descriptions_give_way_to_folders(tmp_path: Path) -> None:
    objective = "an objective with a name that is so long that nobody could read it"
    recipes = recipes_of([trained(tmp_path / "day" / "a"), trained(tmp_path / "day" / "b", loss=gap(objective=objective))])
    assert list(names(recipes)) == ["objective activation", "day_b"]


def test_values_with_slashes_make_file_names(tmp_path: Path) -> None:
    recipes = recipes_of([trained(tmp_path / "a"), trained(tmp_path / "b", model={"name": "google/gemma-2-9b"})])
    assert list(names(recipes)) == ["name google_gemma-2-2b", "name google_gemma-2-9b"]


def test_an_adapter_from_elsewhere_is_a_recipe_of_its_own(tmp_path: Path) -> None:
    elsewhere = peft_folder(tmp_path / "lora" / "final")
    own = [trained(tmp_path / "runs" / "a"), trained(tmp_path / "runs" / "b", seed=1)]
    recipes = recipes_of([*own, elsewhere, "someone/gemma-lora"])
    assert [len(recipe.adapters) for recipe in recipes] == [2, 1, 1]
    assert [recipe.label for recipe in recipes][1:] == ["lora_final", "someone_gemma-lora"]
    assert (recipes[1].targets, recipes[1].adapters[0].training) == ((), None)
    (alone,) = recipes_of([elsewhere])
    assert (alone.label, alone.adapters[0].name) == ("adapter", "adapter")


def test_adapters_without_their_runs_are_known_by_what_they_carry(tmp_path: Path) -> None:
    own = trained(tmp_path / "run", seed=0)
    carried = {key: value for key, value in TRAINING.items() if key not in PRIVATE}
    for seed in (1, 2):
        write_json(Path(peft_folder(tmp_path / f"copy{seed}")) / IDENTITY, {"base_model": "g", "training": carried | {"seed": seed}})
    (recipe,) = recipes_of([own, str(tmp_path / "copy1"), str(tmp_path / "copy2")])
    assert [adapter.name for adapter in recipe.adapters] == ["adapter_seed0", "adapter_seed1", "adapter_seed2"]
    assert recipe.targets == ("ml",)


def test_folders_of_the_same_name_are_numbered(tmp_path: Path) -> None:
    given = [peft_folder(tmp_path / place / "x" / "final") for place in "abc"]
    assert list(names(recipes_of(given))) == ["x_final (0)", "x_final (1)", "x_final (2)"]


def test_settings_that_read_alike_are_numbered(tmp_path: Path) -> None:
    # In sections of the same last word the labels would be one.
    losses = [{"gap": {"weight": 1}, "kl": {"weight": 1}}, {"gap": {"weight": 1}, "lm": {"weight": 1}}, {"gap": {"weight": 1}, "norm": {"weight": 1}}]
    recipes = recipes_of([trained(tmp_path / str(place), loss=loss) for place, loss in enumerate(losses)])
    assert list(names(recipes)) == ["weight 1 (0)", "weight 1 (1)", "weight 1 (2)"]


def test_no_adapter_is_called_base(tmp_path: Path) -> None:
    recipes = recipes_of([trained(tmp_path / "a"), peft_folder(Path("/") / tmp_path / "x"), "base"])
    assert [recipe.label for recipe in recipes][2] == "base (2)"


def test_a_sweep_stands_for_its_jobs(tmp_path: Path) -> None:
    for number, (code, seed, status) in enumerate([("ml", 0, "complete"), ("hi", 0, "complete"), ("ml", 1, "complete"), ("ml", 2, "failed")]):
        run = trained(tmp_path / "sweep" / str(number), lang=[code], seed=seed)
        record = {"job": number, "overrides": {}, "status": status, "problem": None, "folder": run}
        write_json(tmp_path / "sweep" / ".jobs" / f"{number}.json", record)
    recipes = recipes_of([str(tmp_path / "sweep"), trained(tmp_path / "more", seed=5)])
    assert names(recipes) == {"lang ml": ["lang ml_seed0", "lang ml_seed1", "lang ml_seed5"], "lang hi": ["lang hi"]}
    assert [adapter.given for adapter in recipes[0].adapters] == [str(tmp_path / place) for place in ("sweep/0", "sweep/2", "more")]


def test_names_are_unique_and_name_files(tmp_path: Path) -> None:
    given = [
        *(trained(tmp_path / "runs" / f"s{seed}", seed=seed) for seed in (0, 1)),
        trained(tmp_path / "runs" / "other", loss=gap(objective="a/b")),
        *(peft_folder(tmp_path / place / "runs" / "s0") for place in "xy"),
        "user/name",
        "entity/project/name:latest",
    ]
    recipes = recipes_of(given)
    found = [adapter.name for recipe in recipes for adapter in recipe.adapters]
    assert len(found) == len(given)
    assert len(set(found)) == len(found)
    assert len({recipe.label for recipe in recipes}) == len(recipes)
    for name in found:
        (tmp_path / f"{name}.json").write_text("{}")
    assert len(list(tmp_path.glob("*.json"))) == len(found)


def test_what_is_put_behind_a_name_makes_no_other_name(tmp_path: Path) -> None:
    folders = [*(peft_folder(tmp_path / place / "x" / "final") for place in "ab"), peft_folder(tmp_path / "x" / "final (0)")]
    assert len(names(recipes_of(folders))) == 3
    seeds = [trained(tmp_path / "runs" / "a"), trained(tmp_path / "runs" / "b", seed=1)]
    recipes = recipes_of([*seeds, peft_folder(tmp_path / "runs" / "a_seed0"), peft_folder(tmp_path / "lang ml" / "seed0")])
    assert len({adapter.name for recipe in recipes for adapter in recipe.adapters}) == 4
    recipes = recipes_of([*seeds, trained(tmp_path / "hi", lang=["hi"]), peft_folder(tmp_path / "lang ml" / "seed0")])
    assert len({adapter.name for recipe in recipes for adapter in recipe.adapters}) == 4


def test_what_is_given_twice_or_damaged_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    with pytest.raises(UserError, match="is given twice"):
        recipes_of([run, f"{run}/adapter"])
    (tmp_path / "run" / "config.yaml").write_text("- a\n- list\n")
    with pytest.raises(UserError, match=r"config\.yaml' cannot be read: it is truncated or not a lingact file"):
        recipes_of([run])
