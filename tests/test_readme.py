"""The READMEs' figures are those of the committed runs, and their links lead somewhere."""

import json
import re
import runpy

import pytest
from conftest import ROOT

from cifar10lab.results import reference
from cifar10lab.results.history import describe_epoch, describe_result

READMES = ("README.md", "README.zh-CN.md")
PAGES = [ROOT / name for name in READMES] + sorted((ROOT / "docs").glob("*.md")) + [ROOT / "benchmarks" / "README.md"]
ROWS = {  # the row's command, and a run of its settings
    "original_version_model.py": "original_version_model",
    "original_version_model_multigpu.py --epochs 50": "original_version_model_multiGPU/epochs=50",
    "l2_regularization.py --epochs 50": "L2_regularization_model/epochs=50",
    "dropout_regularization.py --epochs 50": "Dropout_regularization/epochs=50",
    "resnet_model.py": "Resnet",
    "fast_model.py": "Fast",
}


@pytest.fixture(scope="module")
def throughput() -> dict:
    """The benchmark's functions, and as `cases` what it measured."""
    cases = json.loads(read("benchmarks/throughput.json"))
    return runpy.run_path(str(ROOT / "benchmarks" / "throughput.py")) | {"cases": cases}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("readme", READMES)
def test_the_table_has_the_committed_runs_figures(readme: str, throughput: dict) -> None:
    runs, text = reference.reference_runs(), read(readme).replace(" %", "%")  # Chinese has no space there
    minutes = {row[1]: row[-1] for row in throughput["describe_runs"](throughput["cases"])}
    for command, folder in ROWS.items():
        row = re.search(rf"^\| `{re.escape(command)}` \|(.+)\|$", text, re.M)[1]
        cells, record = [cell.strip() for cell in row.split("|")], runs[reference.REFERENCE / folder / "loss.json"]
        assert cells[2] == minutes[command], command
        accuracies = reference.reference_accuracies(runs, record)
        accuracy, seeds = re.match(r"([\d.]+(?: ± [\d.]+)?)%\D*(\d)", cells[1]).groups()
        assert (accuracy, int(seeds)) == (reference.mean_text(accuracies), len(accuracies)), command
        assert cells[3].removesuffix("%") == (reference.original_accuracy(record["config"]) or "-"), command
    fast = [runs[path]["result"] for path in runs if re.search(r"reference/Fast(/seed=\d)?/loss\.json", str(path))]
    mirrored = reference.mean_text([result["mirrored_test_accuracy"] for result in fast])
    assert f" {mirrored}%" in text, "the fast model's accuracy with mirrored images"


@pytest.mark.parametrize("readme", READMES)
def test_what_a_run_prints_is_shown_as_it_prints_it(readme: str) -> None:
    record, text = json.loads(read("modelset/reference/original_version_model/loss.json")), read(readme)
    history, images = record["history"], record["dataset"]["train_images"]
    first = {name: values[:1] for name, values in history.items()}
    assert f"\n{describe_epoch(first, len(history['epoch']), images)}\n" in text
    assert f"\n{describe_result(record['result'])}{reference.beside_reference(record)}\n" in text


def test_the_benchmarks_tables_are_those_that_it_measured(throughput: dict) -> None:
    cases, text = throughput["cases"], read("benchmarks/README.md")
    rows = [*map(throughput["describe_case"], cases), *throughput["describe_runs"](cases)]
    assert [row for row in rows if f"| {' | '.join(row)} |" not in text] == []


def test_speeds_without_bfloat16_are_those_of_their_runs() -> None:
    for run, row in (("bf16", "bf16` "), ("fp32", "fp32`, with AVX-512 "), ("avx2", "AVX2`) ")):
        record = json.loads(read(f"benchmarks/bfloat16/{run}.json"))
        assert f"{row}| {record['result']['images_per_second']:.0f} |" in read("docs/speed.md")


def test_the_verdicts_are_those_of_the_reference_page() -> None:
    verdicts = re.findall(r"^\d\. (.+): \*\*(.+)\*\*$", read("modelset/reference/README.md"), re.M)
    results = " ".join(read("docs/results.md").split())
    assert re.findall(r"\d\. \*\*([^*]+): ([^*]+)\.\*\*", results) == verdicts and len(verdicts) == 4


def test_links_to_files_lead_somewhere() -> None:
    for page in PAGES:
        links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
        assert not [link for link in links if not (page.parent / link).exists()], page
