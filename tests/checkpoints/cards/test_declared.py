"""What models say of themselves, and what a card may say of several together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoint_files import COMMIT, cached, random_model, write_model

from taskmerge.checkpoints.cards.declared import Declared, declared, is_id
from taskmerge.checkpoints.cards.front_matter import fields, read_card, split, written
from taskmerge.checkpoints.cards.joining import joined
from taskmerge.checkpoints.formats.reading import open_stored
from taskmerge.checkpoints.output.record import described

CARD = """---
license: Apache-2.0
language:
- en
- no
base_model: org/parent
datasets: [org/data, "two words"]
tags: [legal, generated_from_trainer, "dataset_size:12", gguf]
model-index:
- name: [unclosed
---
# Title

Words.
"""


def test_front_matter_is_read_key_by_key() -> None:
    """A broken key takes no other with it, and `no` is a language."""
    found = fields(CARD, ("license", "language", "datasets", "model-index"))
    assert found == {"license": "Apache-2.0", "language": ["en", "no"], "datasets": ["org/data", "two words"]}
    assert split(CARD)[1] == "# Title\n\nWords.\n"
    assert split("# No YAML\n---\n")[0] == "" and split("---\r\nlicense: mit\r\n---\r\nx")[1] == "x"


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['true']", "&a [*a]", "[" * 3000, "\x00", "2020-99-99"]
)
def test_hostile_yaml_says_nothing_and_does_nothing(text: str) -> None:
    found = fields(f"---\nlicense: {text}\ntags: [a]\n---\n", ("license", "tags"))
    assert found["tags"] == ["a"]
    assert "license" not in found or isinstance(found["license"], str | list)


def test_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").symlink_to(tmp_path / "secret")
    assert read_card(tmp_path / "model") == ""


def test_ids_come_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "files", random_model(0))
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"README.md": CARD.encode()}
    snapshot = cached(tmp_path / "cache", "org-a/b.c-d", files)
    (row,) = declared(open_stored(snapshot).beside.folders)
    assert (row["models"], row["how"], row["license"]) == (["org-a/b.c-d"], "cache", "apache-2.0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    found = described({"base": open_stored(snapshot)})["base"]
    assert found["declared"] == [row] and COMMIT not in str(row)


@pytest.mark.parametrize(
    ("files", "models", "how"),
    [
        ({"README.md": CARD, "config.json": '{"_name_or_path": "org/other"}'}, ["org/parent"], "card"),
        ({"config.json": '{"_name_or_path": "org/other"}'}, ["org/other"], "config"),
        ({"config.json": '{"_name_or_path": "/home/me/model"}'}, None, None),
        ({"config.json": '{"_name_or_path": "outputs/final"}'}, None, None),
        ({"config.json": '{"_name_or_path": "mine/checkpoint-500"}'}, None, None),
        ({"config.json": '{"_name_or_path": 3}'}, None, None),
        ({"adapter_config.json": '{"base_model_name_or_path": "org/base"}'}, ["org/base"], "config"),
        ({"README.md": "---\nbase_model: ../base\n---\n"}, None, None),
        ({"README.md": "no yaml"}, None, None),
    ],
)
def test_a_local_folder_names_what_it_was_made_from(
    tmp_path: Path, files: dict[str, str], models: list[str] | None, how: str | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (row,) = declared([tmp_path])
    assert (row.get("models"), row.get("how")) == (models, how)


def test_a_folder_cloned_from_the_hub(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text('[remote "origin"]\n\turl = https://huggingface.co/org/name\n')
    assert declared([tmp_path])[0]["models"] == ["org/name"]


def test_a_path_that_is_there_is_no_id(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert is_id("org/name") and not is_id("org/name", tmp_path / "model")


def test_a_model_made_here_hands_on_what_its_inputs_say(tmp_path: Path) -> None:
    """A conflict two merges ago is one still."""
    rows: list[Declared] = [{"models": ["a/b"], "how": "hub", "license": "mit"}, {"license": "gemma"}]
    record = {"inputs": {"base": {"declared": rows[:1]}, "one": {"declared": rows}}}
    (tmp_path / "taskmerge.json").write_text(json.dumps(record))
    assert declared([tmp_path]) == rows
    (tmp_path / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    assert declared([tmp_path]) == [{"license": "cc0-1.0", "models": ["a/b"], "how": "card"}]


def test_equal_licences_are_claimed_and_others_are_not() -> None:
    mit: Declared = {"models": ["a/b"], "how": "hub", "license": "mit"}
    assert joined({"base": [mit], "one": [{**mit, "models": ["a/c"]}]}).licence == {"license": "mit"}
    differ = joined({"base": [mit], "one": [{"models": ["c/d"], "how": "hub", "license": "gemma"}]})
    assert differ.conflict and not differ.licence and "mit of base; gemma of one" in differ.findings[0]
    silent = joined({"base": [mit], "one": [{"models": ["c/d"], "how": "hub"}], "two": []})
    assert not silent.conflict and not silent.licence
    assert silent.findings == [
        "one, two state no licence, so the card claims none", "two is a local folder without a hub id, so "
        "base_model does not list it",
    ]  # fmt: skip
    assert not joined({"base": [{"license": "unknown"}]}).licence


def test_two_licences_called_other_are_two() -> None:
    one: Declared = {"license": "other", "license_name": "tongyi", "license_link": "https://x.org/l"}
    two: Declared = {"license": "other", "license_name": "health ai"}
    assert joined({"a": [one], "b": [two]}).conflict
    assert joined({"a": [one], "b": [one]}).licence == {
        "license": "other", "license_name": "tongyi", "license_link": "https://x.org/l",
    }  # fmt: skip
    assert joined({"a": [{"license": "My Own!"}]}).licence == {"license": "other", "license_name": "my-own"}


def test_tags_of_files_are_not_handed_on() -> None:
    found = joined({"a": declared_card(CARD), "b": [{"tags": ["legal", "b"], "language": ["de"]}]})
    assert (found.tags, found.languages, found.datasets) == (["legal", "b"], ["en", "no", "de"], ["org/data"])


def declared_card(text: str) -> list[Declared]:
    table = fields(text, ("tags", "language", "datasets"))
    return [table]  # type: ignore[list-item]


def test_what_is_written_is_yaml() -> None:
    import yaml

    front = {"a": ["x: y", "# no", "\u2028", "no"], "empty": [], "none": None, "b": "---\n"}
    assert yaml.safe_load(written(front).strip("-\n")) == {"a": front["a"], "b": "---\n"}
