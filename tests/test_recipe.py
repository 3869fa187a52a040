import tomllib
import warnings
from pathlib import Path

import pytest
from small import CASCADE, HYBRID, SETTINGS, as_overrides

from calotype.files import read_json
from calotype.recipe import EnlargeRecipe, Recipe
from calotype.settings import REMOVED, parse_recipe, read_overrides, read_recipe, to_toml, upgraded
from calotype.tables import all_keys, at_path, line_of, merge, read_value
from calotype.types import UserError

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
UNET = {"denoiser": {"backbone": {"kind": "unet", "width": 32}, "schedule": {"kind": "karras"}, "scaling": "edm"}}


def written(folder, text):
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


def refused(folder, text):
    with pytest.raises(UserError) as error:
        read_recipe(written(folder, text))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder / 'recipe.toml'}, ")


# -- Files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [0, 960])
def test_a_recipe_written_when_there_was_a_joint_leg_is_read_without_it(tmp_path, images):
    """With a warning where it asks for one."""
    path = written(tmp_path, f"size = 32\n\n[joint]\nimages = {images}\nbatch = 8\n\n[joint.losses]\nforesight = 0.5")
    with warnings.catch_warnings(record=True) as caught:
        assert read_recipe(path) == {"size": 32}
    assert [str(one.message).startswith(f"{path} sets joint, but") for one in caught] == [True] * bool(images)


@pytest.mark.parametrize("name", ["equivariance", "latent_noise"])
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_loss_that_is_gone_is_left_out_and_named_where_it_was_used(tmp_path, name, value):
    path = written(tmp_path, f"[autoencoder.losses]\nkl = 1e-5\n{name} = {value}")
    with warnings.catch_warnings(record=True) as warned:
        assert read_recipe(path) == {"autoencoder": {"losses": {"kl": 1e-5}}}
    messages = [str(one.message) for one in warned]
    assert len(messages) == (value > 0) and all(f"sets autoencoder.losses.{name}, but" in one for one in messages)
    with pytest.raises(UserError, match=f"autoencoder.losses.{name} is gone: .*; leave it out"):
        read_overrides([f"autoencoder.losses.{name}={value}"])


def test_exposure_fine_tuning_had_another_name():
    above = {"images": 8, "share": 0.25}
    read = upgraded({"enlarge": {"64": {"mistakes": above}}})
    assert read["enlarge"]["64"]["exposure"] == above and "mistakes" not in read["enlarge"]["64"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("size = 64\nsead = 1", 2, "unknown key sead; did you mean seed?"),
        ("\n\n[denoiser]\n\nlabel_dropot = 0.1", 5, "did you mean denoiser.label_dropout?"),
        ("[denoiser.backbone]\ndepth = 3\nwidht = 64", 3, "did you mean denoiser.backbone.width?"),
        ("[autoencoder]\nbatch = 3\n[denoiser]\nbach = 4", 4, "did you mean denoiser.batch?"),
        ("denoiser.bach = 4", 1, "did you mean denoiser.batch?"),
        ("[autoencoder.losses]\nedges = 1.0\n[autoencodr]", 3, "did you mean autoencoder?"),
        ("qqqqqqqq = 1", 1, "unknown key qqqqqqqq"),
        ("# size = 1\n[sampling]\n  stepps=3 # steps", 3, "did you mean sampling.steps?"),
    ],
)
def test_an_unknown_key_is_shown_with_its_line_and_what_may_be_meant(tmp_path, text, line, message):
    assert refused(tmp_path, text).startswith(f"line {line}: unknown key ")
    assert refused(tmp_path, text).endswith(message)


@pytest.mark.parametrize(
    ("text", "line", "shown"),
    [
        ("size = 'big'", 1, "valid integer"),
        ("seed = 1\nsize = 64.5", 2, "size"),
        ("size = -64", 1, "greater than 0 (got -64)"),
        ("[denoiser]\nbatch = 0", 2, "denoiser.batch"),
        ("[denoiser.backbone]\nwidth = 64\ndepth = [1]", 3, "valid integer"),
        ("[denoiser.backbone]\nkind = 'transformer'", 1, "expected tags: 'unet', 'dit'"),
        ("[denoiser.schedule]\nkind = 'flow'\nstart = 1.0", 3, "less than 1 (got 1.0)"),
        ("denoiser = 5", 1, "denoiser"),
        ("[denoiser.text]\npath = 'encoder'", 2, "path belongs to another kind; set denoiser.text.kind with it"),
        ("[denoiser.text]\nkind = 'minilm'\nwords = 4", 3, "greater than or equal to 8 (got 4)"),
        ("denoiser.text.kind = 'folder'", 1, "Field required"),
        ("precision = 'float16'", 1, "'float32' or 'bfloat16' (got 'float16')"),
        ("[autoencoder.learn]\nbetas = [0.9, 1.5]", 2, "less than 1"),
        ("[denoiser.learn]\naverage = nan", 2, "average"),
    ],
)
def test_a_wrong_value_is_shown_with_its_line(tmp_path, text, line, shown):
    message = refused(tmp_path, text)
    assert message.startswith(f"line {line}: ") and shown in message


@pytest.mark.parametrize("content", [b"size = ", b"size = 1\nsize = 2", b"\xff\xfe", b"[a", b"a = 1 b = 2"])
def test_what_is_not_toml_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.toml is not TOML") as error:
        read_recipe(tmp_path / "recipe.toml")
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_there(tmp_path):
    for path in (tmp_path / "nothing.toml", tmp_path):
        with pytest.raises(UserError, match="recipe"):
            read_recipe(path)


@pytest.mark.parametrize("settings", [{}, SETTINGS, CASCADE, HYBRID, UNET, {"sampling": {"guidance_high": 3.0}}])
def test_a_recipe_survives_being_written(tmp_path, settings):
    recipe = parse_recipe(settings)
    assert parse_recipe(read_recipe(written(tmp_path, to_toml(recipe)))) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_recipes_of_the_project_are_sound(path):
    assert parse_recipe(read_recipe(path))


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a = 1\n[b]\na = 2", "b.a", 3),
        ("a = 1\n[b]\na = 2", "a", 1),
        ("[b]\nx = 1\n[ b.c ]\nx = 2", "b.c.x", 4),
        ("[b]\n[c]\nb = 1", "c", 2),
        ("b.a = 1", "b.a", 1),
        ("[b]\nc = {a = 1}", "b.c.a", 2),
    ],
)
def test_the_line_of_a_key(text, key, line):
    assert line_of(text, key) == line


# -- Overrides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("384", 384), ("1e-4", 1e-4), ("0.5", 0.5), ("inf", float("inf")), ("true", True), ("[1, 2]", [1, 2]),
        ("{kind = 'unet'}", {"kind": "unet"}), ("unet", "unet"), ("'unet'", "unet"), ('"a=b"', "a=b"), ("", ""),
        ("1\nother = 2", 1), ("1.2.3", "1.2.3"), ("[1", "[1"),
    ],
)  # fmt: skip
def test_a_value_is_toml_or_else_text(text, value):
    assert read_value(text) == value and type(read_value(text)) is type(value)


def test_overrides_nest_and_the_last_one_counts():
    given = [
        "denoiser.batch=3",
        "denoiser.backbone.width = 64",
        "size=32",
        "size=48",
        "autoencoder.network.widths=[8,16]",
    ]
    assert read_overrides(given) == {
        "denoiser": {"batch": 3, "backbone": {"width": 64}},
        "size": 48,
        "autoencoder": {"network": {"widths": [8, 16]}},
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["size"], "--set size: expected key=value"),
        (["=3"], "expected key=value"),
        (["sizze=3"], "--set sizze: unknown key sizze; did you mean size?"),
        (["denoiser.backbone.widht=3"], "did you mean denoiser.backbone.width?"),
        (["size=big"], "--set size: .*valid integer.*'big'"),
        (["size="], "--set size: .*valid integer"),
        (["size.x=3"], "--set size: "),
        (["size=3", "size.x=4"], "size has been given a value already"),
        (["denoiser..batch=3"], "unknown key"),
        ([".=3"], "unknown key"),
        (["denoiser.backbone.kind=mlp"], "expected tags: 'unet', 'dit'"),
    ],
)
def test_a_malformed_override_is_refused_in_one_line(given, message):
    with pytest.raises(UserError, match=message) as error:
        read_overrides(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "below"),
    [
        ("autoencoder.network.widths=[8]", {"autoencoder": {"network": {"reduction": 4}}}),
        ("autoencoder.network.reduction=16", {"autoencoder": {"network": {"widths": [8, 8, 8]}}}),
        ("denoiser.backbone.width=36", {"denoiser": {"backbone": {"heads": 3}}}),
    ],
)
def test_whether_settings_fit_together_shows_when_all_are_there(given, below):
    """One alone does not fit the defaults; but it may fit what the plan chooses."""
    settings = read_overrides([given])
    for alone in (settings, below):
        with pytest.raises(UserError, match="recipe: "):
            parse_recipe(alone)
    assert parse_recipe(merge(below, settings))


def test_overrides_are_read_over_the_recipe_file():
    """`blocks` is a setting of the UNet that the file names, not of the default DiT."""
    assert read_overrides(["denoiser.backbone.blocks=1"], UNET) == {"denoiser": {"backbone": {"blocks": 1}}}
    with pytest.raises(UserError, match=r"denoiser\.backbone\.blocks belongs to another kind; set .*\.kind with it"):
        read_overrides(["denoiser.backbone.blocks=1"])
    with pytest.raises(UserError, match=r"denoiser\.backbone\.heads belongs to another kind"):
        read_overrides(["denoiser.backbone.heads=1"], UNET)


def test_a_recipe_can_be_given_as_overrides_alone():
    settings = parse_recipe(merge(UNET, SETTINGS))
    assert parse_recipe(read_overrides(as_overrides(settings.model_dump(mode="json")))) == settings


@pytest.mark.parametrize("place", ["denoiser", "enlarge.32"])
def test_dropout_of_more_than_all_pictures_is_refused(place):
    wrong = [f"{place}.label_dropout=0.3", f"{place}.caption_alone=0.5", f"{place}.label_alone=0.25"]
    with pytest.raises(UserError, match=rf"{place}: .*0.3, .*0.5 and .*0.25 sum to 1.05, .*at most 1; lower") as error:
        parse_recipe(read_overrides([*CHAIN, *wrong]))
    assert "\n" not in str(error.value)
    assert parse_recipe(read_overrides([*CHAIN, *wrong[:2], f"{place}.label_alone=0.2"]))


# -- Chains of stages --------------------------------------------------------------------------------------------------


CHAIN = ["kind=cascade", "size=32", "stages=[16,32]", "enlarge.32.images=640", "enlarge.32.crop=16", "seed=3"]


def test_a_chain_can_be_given_as_overrides_and_survives_being_written(tmp_path):
    recipe = parse_recipe(read_overrides(CHAIN))
    assert recipe.chain == (16, 32) and recipe.enlarging(32).images == 640 and recipe.enlarging(32).crop == 16
    text = to_toml(recipe)
    assert "autoencoder" not in text and tomllib.loads(text)["enlarge"]["32"]["images"] == 640
    assert parse_recipe(read_recipe(written(tmp_path, text))) == recipe


@pytest.mark.parametrize("settings", [CASCADE, HYBRID], ids=["cascade", "hybrid"])
def test_a_recipe_of_several_stages_survives_being_written(tmp_path, settings):
    recipe, text = parse_recipe(settings), to_toml(parse_recipe(settings))
    assert parse_recipe(read_recipe(written(tmp_path, text))) == recipe
    assert ("autoencoder" in tomllib.loads(text)) == (settings is HYBRID)
    assert parse_recipe(read_overrides(as_overrides(settings))) == recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 24, "stages": [16, 24]}, r"\[16, 24\], but each must be a whole multiple of the one before"),
        ({"size": 16, "stages": [32, 16]}, r"\[32, 16\], but each must be a whole multiple"),
        ({"size": 16, "stages": [16, 16]}, r"\[16, 16\], but each must be a whole multiple"),
        ({"size": 64, "stages": [16, 32]}, "end at 32, but size is 64; the last stage makes that size"),
        ({"size": 32, "stages": [16, 32], "enlarge": {"64": {}}}, r"enlarge.64 is set, but the stages are \[16, 32\]"),
        ({"size": 32, "stages": [16, 32], "enlarge": {"16": {}}}, "enlarge.16 is set, but the stages are"),
        ({"size": 32, "enlarge": {"32": {}}}, r"enlarge.32 is set, but the stages are \[32\]"),
        ({"size": 32, "stages": [16, 32], "enlarge": {"large": {}}}, "enlarge.large is set, but"),
        ({"size": 32, "stages": [0, 32]}, "stages.0.*greater than 0"),
        ({"kind": "gan"}, "'latent' or 'cascade'"),
    ],
)
def test_a_wrong_chain_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        parse_recipe(settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["enlarge.32.imagse=3"], "unknown key enlarge.32.imagse"),
        (["enlarge.32.batch=0"], "enlarge.32.batch.*greater than 0"),
        (["enlarge.32.augmentation.kind=salt"], "'noise', 'blur'"),
        (["enlarge.32.sampling.conditioning=half"], "'whole' or 'truncated'"),
        (["stages=16"], "stages"),
    ],
)
def test_a_wrong_setting_of_a_stage_is_refused_in_one_line(given, message):
    with pytest.raises(UserError, match=message) as error:
        read_overrides(given)
    assert "\n" not in str(error.value)


def test_one_setting_of_a_stage_leaves_its_other_defaults():
    """And says nothing of the kind of what it belongs to."""
    plain, chain = EnlargeRecipe(), {"size": 32, "stages": [16, 32]}
    for override, change in (
        ("sampling.augmentation=0.3", {"sampling": {"augmentation": 0.3}}),
        ("backbone.width=32", {"backbone": {"width": 32}}),
        ("schedule.mean=-2.0", {"schedule": {"mean": -2.0}}),
        ("augmentation.most=0.4", {"augmentation": {"most": 0.4}}),
    ):
        settings = read_overrides([f"enlarge.32.{override}"])
        expected = EnlargeRecipe.model_validate(merge(plain.model_dump(), change))
        assert parse_recipe(merge(chain, settings)).enlarging(32) == expected != plain


def test_each_leg_of_a_chain_has_its_images():
    recipe = parse_recipe(
        merge(HYBRID, {"stages": [4, 8, 16], "enlarge": {"8": {"batch": 2}}, "autoencoder": {"crop": 4}})
    )
    assert list(recipe.legs) == ["autoencoder", "denoiser", "enlarge-8", "enlarge-16"]
    images = dict(zip(recipe.legs, (8, 16, 24, 40), strict=True))
    changed = recipe.with_images(images)
    assert {leg: config.images for leg, config in changed.legs.items()} == images
    assert changed.with_images({leg: config.images for leg, config in recipe.legs.items()}) == recipe
    assert changed.with_images({}) == changed
    assert [one.steps for one in changed.samplings] == [3, 12, 2]


def test_a_chain_of_one_is_the_size():
    assert parse_recipe({"size": 48}).chain == (48,) and list(parse_recipe({"kind": "cascade"}).legs) == ["denoiser"]


# -- Merging -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "merged"),
    [
        ([{"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}}], {"a": 1, "b": {"c": 4, "d": 3}}),
        ([{"b": {"kind": "x", "c": 2}}, {"b": {"kind": "y"}}], {"b": {"kind": "y"}}),
        ([{"b": {"kind": "x", "c": 2}}, {"b": {"kind": "x", "d": 1}}], {"b": {"kind": "x", "c": 2, "d": 1}}),
        ([{"b": {"kind": "x", "c": 2}}, {"b": {"d": 1}}], {"b": {"kind": "x", "c": 2, "d": 1}}),
        ([{"a": {"b": {"kind": "x", "c": 2}}}, {"a": {"b": {"kind": "y"}}}], {"a": {"b": {"kind": "y"}}}),
        ([{"a": {"b": 1}}, {"a": 2}, {"a": {"c": 3}}], {"a": {"c": 3}}),
        ([{"a": [1, 2]}, {"a": [3]}], {"a": [3]}),
        ([], {}),
    ],
)
def test_later_layers_count_more_and_another_kind_replaces_its_table(layers, merged):
    before = repr(layers)
    assert merge(*layers) == merged and repr(layers) == before


def test_merging_is_associative_and_nothing_is_its_neutral():
    one, two, three = UNET, SETTINGS, {"denoiser": {"backbone": {"kind": "unet", "blocks": 1}, "batch": 9}}
    assert merge(merge(one, two), three) == merge(one, two, three)
    assert merge(one, {}) == merge({}, one) == one


# -- Data, not code ----------------------------------------------------------------------------------------------------


def strings(schema, definitions, path=""):
    """Where in a JSON schema a free string may stand."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if schema.get("type") == "string" and not {"enum", "const"} & set(schema):
        yield path
    for name, inner in schema.get("properties", {}).items():
        yield from strings(inner, definitions, f"{path}.{name}")
    for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for inner in schema.get(word, []):
            yield from strings(inner, definitions, path)
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            yield from strings(schema[word], definitions, path)


def test_no_setting_can_name_code_and_one_names_a_folder():
    """Every text in a recipe is one of a closed list, and no table takes other keys than its own.

    But for the folders of an imported autoencoder and of a text encoder (with its hash), of which JSON and safetensors
    are read, and nothing runs.
    """
    schema = Recipe.model_json_schema()
    free = {".space.path", ".denoiser.text.path", ".denoiser.text.digest"}
    assert set(strings(schema, schema["$defs"])) == free
    assert list(strings({"properties": {"free": {"type": "string"}}}, {})) == [".free"]
    tables = [schema, *(part for part in schema["$defs"].values() if part["type"] == "object")]
    assert len(tables) > 8 and all(table["additionalProperties"] is False for table in tables)


@pytest.mark.parametrize(
    "name", ["torch.nn.Linear", "os.system", "__import__('os')", "calotype.nets.dit.Dit", "pickle"]
)
def test_a_class_path_is_nothing_wherever_it_stands(name):
    leaves = [key for key in all_keys(Recipe().model_dump()) if not isinstance(at(Recipe().model_dump(), key), dict)]
    assert len(leaves) > 40
    for key in leaves:
        with pytest.raises(UserError):
            read_overrides([f"{key}={name!r}"])


def at(settings, key):
    for part in key.split("."):
        settings = settings[part]
    return settings


def test_toml_is_the_only_syntax(tmp_path):
    text = to_toml(parse_recipe(SETTINGS))
    assert tomllib.loads(text)["denoiser"]["backbone"]["kind"] == "dit"


@pytest.mark.parametrize("dropped", [0.0, 0.1, 0.55, 0.8, 1.0])
def test_a_recipe_of_an_earlier_version_opens_at_every_label_dropout(dropped):
    table = {"label_dropout": dropped}
    found = parse_recipe(upgraded({"size": 128, "stages": [64, 128], "denoiser": table, "enlarge": {"128": table}}))
    for one in (found.denoiser, found.enlarging(128)):
        assert one.label_dropout == dropped and one.caption_alone == pytest.approx(min(0.4, 1 - dropped))


# -- Keys of version 0.1 -----------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden"
OLD_KEYS = [
    ("shapes", "aspect_buckets", 3, 3),
    ("denoiser.start", "denoiser.prior", "nothing", "none"),
    ("denoiser.spread", "denoiser.sigma_data", 0.5, 0.5),
    ("denoiser.phrase_dropout", "denoiser.caption_dropout", 0.25, 0.25),
    ("denoiser.schedule.spread", "denoiser.schedule.std", 0.75, 0.75),
    ("enlarge.64.start", "enlarge.64.prior", "gaussian", "gaussian"),
    ("enlarge.64.spread", "enlarge.64.sigma_data", 0.1, 0.1),
    ("enlarge.64.schedule.spread", "enlarge.64.schedule.std", 1.5, 1.5),
    ("enlarge.64.mistakes.images", "enlarge.64.exposure.images", 8, 8),
]


@pytest.mark.parametrize(("old", "new", "value", "read"), OLD_KEYS)
def test_a_file_may_have_the_old_name_of_a_key(tmp_path, old, new, value, read):
    assert read_recipe(written(tmp_path, f"{old} = {value!r}")) == nested(new, read)


@pytest.mark.parametrize(("old", "new", "value", "read"), OLD_KEYS)
def test_an_old_key_on_the_command_line_is_refused_with_its_new_name(old, new, value, read):
    with pytest.raises(UserError, match=rf"--set {old}={value}: {old} has another name now; set {new}$"):
        read_overrides([f"{old}={value}"])


@pytest.mark.parametrize("name", ["labels", "captions", "cascade"])
def test_the_recipe_of_a_model_of_version_0_1_keeps_all_its_values(name):
    old = read_json(GOLDEN / name / "model.json")["recipe"]
    now = parse_recipe(upgraded(old)).model_dump(mode="json")
    assert now["denoiser"]["schedule"]["std"] == old["denoiser"]["schedule"]["spread"]
    assert now["denoiser"]["sigma_data"] == old["denoiser"]["spread"]
    assert now["autoencoder"]["network"].pop("lapped") is False
    assert now.pop("sharding") == "none" and now.pop("milestones") == 0
    assert now["denoiser"]["schedule"].pop("first_step") == 1.0
    assert now["denoiser"].pop("channel_weighting") == 0.0 and now["denoiser"].pop("views") == 0
    for sampling in (now["sampling"], *(stage["sampling"] for stage in now["enlarge"].values())):
        assert sampling.pop("prior_guidance") == sampling.pop("epsilon_scaling") == 0.0
        assert sampling.pop("final_denoising") == 0.0
    for stage in now["enlarge"].values():
        assert stage.pop("objective") == "denoising"
        del stage["losses"], stage["critic"], stage["critic_learn"]  # of another objective
    learning = [now["denoiser"]["learn"], now["autoencoder"]["learn"], now["autoencoder"]["critic_learn"]]
    for learn in (*learning, *(stage["learn"] for stage in now["enlarge"].values())):
        assert learn.pop("optimizer") == "adamw"
    assert sorted(values(now)) == sorted(values({**old, "autoencoder": without_gone(old["autoencoder"])}))


def test_the_recipe_of_a_stopped_run_of_version_0_1_is_read():
    recipe = parse_recipe(read_recipe(GOLDEN / "stopped-run" / "recipe.toml"))
    assert (recipe.denoiser.prior, recipe.denoiser.images, recipe.aspect_buckets) == ("gaussian", 20000, 1)


def nested(key, value):
    return at_path(key.split("."), value)


def without_gone(autoencoder):
    losses = {
        name: value for name, value in autoencoder["losses"].items() if f"autoencoder.losses.{name}" not in REMOVED
    }
    return {**autoencoder, "losses": losses}


def values(settings):
    """All values, as text, in whatever order."""
    if isinstance(settings, dict):
        return [value for table in settings.values() for value in values(table)]
    return [repr(settings)]


def test_a_recipe_of_a_windows_editor_is_read_or_the_encoding_is_named(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_bytes(b"\xef\xbb\xbfsize = 32\r\n")
    assert read_recipe(file) == {"size": 32}
    file.write_bytes("size = 32".encode("utf-16"))
    with pytest.raises(UserError, match=r"recipe\.toml is not TOML in UTF-8 .*; save it again in UTF-8"):
        read_recipe(file)


def test_a_kind_of_several_lines_is_refused_in_one():
    with pytest.raises(UserError, match=r"Input tag 'a b' found") as error:
        read_overrides(['autoencoder.network={kind = "a\\nb"}'])
    assert "\n" not in str(error.value)
