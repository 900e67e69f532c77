"""What a user gets wrong ends in one sentence on stderr and exit status 2."""

import json

import pytest

from kvoverlap.cli.main import main
from sim.catalog import DATA, find_hardware

PLAN = "plan --hardware kvpr-a100 --prompt 64"


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; returns its sentence."""

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def plan_file(tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert main([*PLAN.split(), "--model", "opt-125m", "--batch", "2", "-o", str(path)]) == 0
    capsys.readouterr()
    return path


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--model opt-13 --batch 2", ["opt-13'", "did you mean 'opt-13b'"]),
        ("--model opt-125m --batch -2", ["--batch(=-2)", "at least 1"]),
        ("--model opt-125m --batch 1.5", ["--batch(=1.5)"]),
        ("--model opt-125m --batch 2 --gen 0", ["--gen(=0)"]),
        ("--model opt-125m --batch 2 --policy kvp", ["did you mean 'kvpr'"]),
        ("--model opt-125m --batch 2 --policy fixed:many", ["fixed:256"]),
        ("--model opt-125m --batch 2 --schedule diagonal", ["schedule", "row"]),
        ("--model opt-125m --batch 2 --dtype int8", ["int8", "float16"]),
        ("--model opt-125m --batch 2 --dtype float32", ["kvpr-a100", "float16"]),
        ("--model opt-125m --batch 2 --set link.bandwith=3GB/s", ["link.bandwidth"]),
        ("--model opt-125m --batch 2 --set link.bandwidth=-3", ["rate of at least 1 B/s"]),
        ("--model opt-125m --batch 2 --set host.bandwidth=9GB/s", ["links.host"]),
        ("--model opt-125m --batch 2 --policy flexgen", ["links.host", "`kvoverlap profile`"]),
        ("--model opt-125m --batch 2 --gen 4K", ["2048 positions"]),
        ("--model opt-30b --batch 2", ["39.0 GiB", "smaller model"]),
        ("--model opt-13b --batch 60000", ["lower --batch to 5453, or --prompt"]),
        ("--model opt-125m --batch 2 --kv-bits 3", ["kv_bits(=3)", "8 or 4"]),
        (
            "--model opt-125m --batch 2 --kv-bits 8 --policy hf-offloaded",
            ["hf-offloaded", "kv_bits(=8)"],
        ),
        ("--model opt-125m --batch 2 --bach 3", ["--batch"]),
        ("--batch 2", ["--model"]),
    ],
)
def test_plan_refuses(refused, arguments, words):
    sentence = refused(*PLAN.split(), *arguments.split())
    for word in words:
        assert word in sentence


def test_unknown_hardware(refused):
    sentence = refused(
        *["plan", "--model", "opt-125m", "--hardware", "kvpr-a10", "--batch", "2", "--prompt", "64"]
    )
    assert "did you mean 'kvpr-a100'" in sentence


def test_host_memory_too_small(refused, tmp_path):
    path = tmp_path / "profile.json"
    find_hardware("kvpr-a100").save(path)
    edited(path, lambda content: content["memory"].update(host_bytes=1e6))
    sentence = refused(*f"plan --model opt-125m --hardware {path} --batch 2 --prompt 64".split())
    assert "host memory" in sentence


def test_config_without_a_field(refused, tmp_path):
    path = tmp_path / "config.json"
    config = json.loads((DATA / "models" / "opt-125m.json").read_text())
    del config["ffn_dim"]
    path.write_text(json.dumps(config))
    assert "'ffn_dim'" in refused(*PLAN.split(), "--batch", 2, "--model", path)


def test_profile_with_an_unknown_key(refused, tmp_path):
    path = tmp_path / "profile.json"
    find_hardware("kvpr-a100").save(path)
    edited(path, lambda content: content["links"]["h2d"].update(byte_per_s=3))
    sentence = refused(*f"plan --model opt-125m --hardware {path} --batch 2 --prompt 64".split())
    assert "'links.h2d.byte_per_s'" in sentence


def test_corrupt_plan(refused, plan_file):
    plan_file.write_text(plan_file.read_text()[:700])
    assert "not valid JSON" in refused("simulate", plan_file)


def test_plan_of_another_kind_of_file(refused, tmp_path):
    path = tmp_path / "profile.json"
    find_hardware("kvpr-a100").save(path)
    assert "'plan'" in refused("run", path)


def test_plan_for_another_model(refused, plan_file):
    def swap(content):
        content["model"]["hidden_size"] = 1024

    assert "simulate" in refused("run", edited(plan_file, swap), "--device", "cpu")


def test_timelines_of_different_graphs(refused, plan_file, tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    other = tmp_path / "other.json"
    main(["simulate", str(plan_file), "-o", str(first)])
    main([*PLAN.split(), "--model", "opt-125m", "--batch", "3", "-o", str(other)])
    main(["simulate", str(other), "-o", str(second)])
    edited(second, lambda content: content.update(source="measured"))
    capsys.readouterr()
    assert "different graphs" in refused("compare", first, second)


def test_two_predictions_are_not_compared(refused, plan_file, tmp_path, capsys):
    first = tmp_path / "first.json"
    main(["simulate", str(plan_file), "-o", str(first)])
    capsys.readouterr()
    assert "predicted" in refused("compare", first, first)


def test_cuda_without_a_gpu(refused, plan_file):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "'cuda' is not available" in refused("run", plan_file, "--device", "cuda")


def test_unknown_device(refused, plan_file):
    assert "auto, cpu, cuda" in refused("run", plan_file, "--device", "tpu")


def test_link_pace_of_a_real_link(refused):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    assert "--link" in refused(
        *["profile", "--device", "cuda", "--link", "1GB/s", "-o", "never.json"]
    )


def test_validate_does_not_write_over_other_files(refused, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds other files" in refused("validate", "--device", "cpu", "--out", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_unwritable_output_leaves_nothing(refused, tmp_path):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "plan.json"
    sentence = refused(*PLAN.split(), "--model", "opt-125m", "--batch", 2, "-o", target)
    assert "cannot write" in sentence
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
