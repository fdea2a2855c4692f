"""JumpStart's buckets: manifest, specs and placeholders for whatever region is asked, and the way back from a key."""

from __future__ import annotations

import json
import re
import tarfile
from io import BytesIO
from typing import Any

import pytest

from luthier.api.jumpstart.document import document
from luthier.catalog import jumpstart
from luthier.catalog import jumpstart as names
from luthier.catalog.entry import Entry, entries, find, parse_for
from luthier.catalog.hyperparameters import TABLE
from luthier.service import jumpstart_bucket

CACHE = jumpstart_bucket.bucket()
BUCKET, PRIVATE = "jumpstart-cache-prod-us-west-2", "jumpstart-private-cache-prod-us-west-2"
ALL = sorted((identity, entry) for entry in entries() for identity in jumpstart.jumpstart_ids(entry))
TUNABLE = [pair for pair in ALL if pair[1].is_tunable]


def read(key: str, bucket: str = BUCKET) -> Any:
    found = CACHE.read(bucket, key)
    assert found is not None, key
    return json.loads(found)


def spec(identity: str, version: str = "5.0.0", bucket: str = BUCKET) -> dict[str, Any]:
    found: dict[str, Any] = read(f"luthier/{identity}/{version}/spec.json", bucket)
    return found


def defaults(identity: str) -> dict[str, str]:
    """What SDK v2 sends when the user sets nothing."""
    return {parameter["name"]: str(parameter["default"]) for parameter in spec(identity)["hyperparameters"]}


def test_the_manifest_lists_every_id_in_every_version() -> None:
    listed = read("models_manifest.json")
    assert {(model["model_id"], model["version"]) for model in listed} == {
        (identity, version) for identity, _ in ALL for version in names.VERSIONS
    }
    assert all(model.keys() == {"model_id", "version", "min_version", "spec_key"} for model in listed)
    for model in listed:
        found = read(model["spec_key"])
        assert (found["model_id"], found["version"]) == (model["model_id"], model["version"])
    [placeholder] = read("proprietary-sdk-manifest.json")  # SDK v2 reads the first entry of this manifest, too
    assert placeholder.keys() == listed[0].keys()
    assert placeholder["min_version"] == "9999.0.0"  # later than any SDK: never listed
    assert placeholder["model_id"] not in {model["model_id"] for model in listed}


def test_ids_are_what_hubs_and_jobs_may_be_named() -> None:
    assert len({identity.lower() for identity, _ in ALL}) == len(ALL)
    listed = {identity for identity, _ in ALL}
    assert {"meta-textgeneration-llama-2-7b", "huggingface-text2text-flan-t5-base", "luthier-tiny"} <= listed
    for identity, entry in ALL:
        assert jumpstart.entry_of(identity) is entry
    for name, entry in names.hub_contents().items():
        assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name)
        assert len(name) <= 63
        assert jumpstart.entry_of(name) is entry
    assert len(names.hub_contents()) == len(ALL)


@pytest.mark.parametrize(("identity", "entry"), TUNABLE, ids=[identity for identity, _ in TUNABLE])
def test_a_spec_has_what_the_sdk_needs(identity: str, entry: Entry) -> None:
    found = spec(identity)
    needed = {
        "training_supported", "hosting_use_script_uri", "training_artifact_key", "training_script_key",
        "default_inference_instance_type", "default_training_instance_type", "supported_training_instance_types",
        "hosting_instance_type_variants", "training_instance_type_variants", "predictor_specs",
    }  # fmt: skip
    assert needed <= found.keys()
    assert found["default_training_instance_type"] in found["supported_training_instance_types"]
    assert found["gated_bucket"] is entry.licence.eula
    assert found["training_instance_type_variants"]["regional_aliases"].keys() == {"us-west-2"}
    for parameter in found["hyperparameters"]:
        check_bounds(parameter)
    parse_for(entry, defaults(identity))
    written = document(entry, identity, "5.0.0", "us-west-2")
    assert [parameter["Name"] for parameter in written["Hyperparameters"]] == list(defaults(identity))


def check_bounds(parameter: dict[str, Any]) -> None:
    """The default is one that the SDK's own check lets through."""
    default = parameter["default"]
    if parameter["type"] == "text":
        assert type(default) is str
        assert default in parameter.get("options", [default])
        return
    assert type(default) is (int if parameter["type"] == "int" else type(default))
    assert parameter.get("min", default) <= default <= parameter.get("max", default)
    assert parameter.get("exclusive_min", default - 1) < default < parameter.get("exclusive_max", default + 1)


def test_families_have_their_own_names_and_defaults() -> None:
    flan, llama = defaults("huggingface-text2text-flan-t5-base"), defaults("meta-textgeneration-llama-2-7b")
    assert (flan["epochs"], flan["batch_size"], flan["peft_type"]) == ("1", "64", "none")
    assert not {"epoch", "instruction_tuned", "chat_dataset", "enable_fsdp"} & flan.keys()
    assert (llama["epoch"], llama["per_device_train_batch_size"], llama["instruction_tuned"]) == ("5", "4", "False")
    assert llama["chat_dataset"] == "False"
    assert defaults("huggingface-llm-mistral-7b")["instruction_tuned"] == "True"
    for chat in ("meta-textgeneration-llama-2-7b-f", "huggingface-llm-gemma-2b-instruct"):
        assert (defaults(chat)["chat_dataset"], defaults(chat)["instruction_tuned"]) == ("True", "False")
    assert defaults("luthier-tiny")["instruction_tuned"] == "True"


def test_what_the_catalogue_bounds_is_bounded() -> None:
    listed = spec("meta-textgeneration-llama-2-7b")["hyperparameters"]
    parameters = {parameter["name"]: parameter for parameter in listed}
    assert parameters["learning_rate"] == {
        "name": "learning_rate", "type": "float", "scope": "algorithm", "default": 0.0001, "min": 1e-8, "max": 1,
    }  # fmt: skip
    assert parameters["max_input_length"]["min"] == -1
    assert parameters["int8_quantization"]["options"] == ["True", "False"]
    assert parameters["preprocessing_num_workers"]["default"] == "None"
    assert TABLE.keys() >= parameters.keys()


def test_a_model_that_is_not_tuned_is_listed_with_its_reason() -> None:
    found = spec("model-txt2img-stabilityai-stable-diffusion-v2-1-base")
    assert found["training_supported"] is False
    assert "language models only" in found["usage_info_message"]


def test_each_region_has_its_own_images() -> None:
    for region in ("eu-central-1", "us-gov-west-1"):
        found = spec("luthier-tiny", bucket=f"jumpstart-cache-prod-{region}")
        aliases = found["hosting_instance_type_variants"]["regional_aliases"]
        assert aliases == {region: {"luthier": f"763104351884.dkr.ecr.{region}.amazonaws.com/luthier-inference:1"}}


def test_gated_artifacts_are_in_the_private_bucket() -> None:
    gated, free = "luthier/meta-textgeneration-llama-2-7b/5.0.0", "luthier/luthier-tiny/5.0.0"
    public, private = set(CACHE.keys(BUCKET)), set(CACHE.keys(PRIVATE))
    assert f"{gated}/train/README.txt" in private - public
    assert f"{free}/train/README.txt" in public - private
    assert "models_manifest.json" not in private
    assert b"https://ai.meta.com/llama/license/" in (CACHE.read(BUCKET, f"{gated}/eula.txt") or b"")


def test_every_listed_key_is_there_and_stays_the_same() -> None:
    for bucket in (BUCKET, PRIVATE):
        for key in CACHE.keys(bucket):
            first = CACHE.read(bucket, key)
            assert first
            assert CACHE.read(bucket, key) == first
    assert CACHE.read(BUCKET, "none") is None
    script = CACHE.read(BUCKET, "luthier/luthier-tiny/1.0.0/sourcedir.tar.gz")
    with tarfile.open(fileobj=BytesIO(script or b"")) as archive:
        assert archive.getnames() == []


@pytest.mark.parametrize(
    ("bucket", "matches"),
    [(BUCKET, True), (PRIVATE, True), ("jumpstart-cache-prod-us-gov-east-1", True), ("jumpstart-cache-prod-", False),
     ("jumpstart-cache-prod-x", False), ("my-jumpstart-cache-prod-us-west-2", False),
     ("jumpstart-cache-prod-us-west-2-mine", False)],
)  # fmt: skip
def test_which_buckets_are_meant(bucket: str, matches: bool) -> None:
    assert (re.fullmatch(CACHE.pattern, bucket) is not None) is matches
    assert jumpstart.is_cache_uri(f"s3://{bucket}/x") is matches


@pytest.mark.parametrize(("identity", "entry"), ALL, ids=[identity for identity, _ in ALL])
def test_the_way_back_from_a_key(identity: str, entry: Entry) -> None:
    region = "ap-northeast-1"
    bucket = names.bucket_of(entry, region)
    for version in names.VERSIONS:
        assert jumpstart.base_model_of_key(f"s3://{bucket}/luthier/{identity}/{version}/train/") is entry
    assert jumpstart.base_model_of_key(f"s3://{bucket}/any-training/train-{identity}.tar.gz") is entry
    assert jumpstart.base_model_of_key(f"s3://mine/luthier/{identity}/1.0.0/train/") is None


def test_keys_that_name_no_model() -> None:
    for uri in (f"s3://{BUCKET}/luthier/none/1.0.0/train/", f"s3://{BUCKET}", "https://x/y", "s3://"):
        assert jumpstart.base_model_of_key(uri) is None


def test_borrowed_weights_lend_no_name() -> None:
    neuron = find("llama-2-7b-neuron")
    assert neuron is not None
    assert jumpstart.entry_of("llama-2-7b") is not neuron
