"""The documentation: generated parts are fresh, links lead somewhere, and the code in it runs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sda_core import init, load_experiment
from sda_core.denoiser import Denoiser
from sda_core.errors import ConfigError
from sda_core.guidance import Likelihood
from sda_core.kernel import WindowShape
from sda_core.plugins import PluginManager
from sda_core.random import MemberNoise
from sda_core.schedule import VE, Schedule
from sda_core.system import SystemSpec, trajectory
from sda_core.testing import check_component

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
RUNNABLE = re.compile(r"^<!-- runnable -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return load(DOCS / "generate.py")


def test_generated_parts_are_fresh(generate: ModuleType) -> None:
    stale = generate.stale()
    differences = "\n".join(generate.difference(page, text) for page, text in stale.items())
    assert not stale, f"run `make docs`\n{differences}"


def test_page_without_end_marker_is_refused(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: hooks -->\n")
    with pytest.raises(ValueError, match=r"page\.md: a block that is generated has no end"):
        generate.fill(page)
    page.write_text("a\n<!-- generated: hooks -->\nold\n<!-- /generated -->\nb\n")
    text = generate.fill(page)
    assert text.startswith("a\n<!-- generated: hooks -->\nhook | arg")
    assert text.endswith("report.\n<!-- /generated -->\nb\n")


def test_measured_figures_are_shown_with_their_source(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for file in sorted((DOCS / "results").glob("*.toml")):
        found = tomllib.loads(file.read_text())
        assert set(found) - {"show", "show_rows"} == {
            *("machine", "recorded", "commands", "columns", "rows", "note")
        }, file.name
        scripts = re.findall(r"\bbenchmarks/\w+\.py", " ".join(found["commands"]))
        assert [s for s in scripts if not (ROOT / s).is_file()] == [], file.name
        assert f"results {file.stem} -->" in text or f"results/{file.name})" in text, file.name
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "odd.toml").write_text('columns = ["a"]\nrows = [["1", "2"]]\n')
    with pytest.raises(ValueError, match=r"odd\.toml: .*\['1', '2'\]"):
        generate.results_block("odd")


def anchors(page: Path) -> set[str]:
    """The anchors that forges give the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page_id(page)} links to {link}, which does not exist"
        if anchor:
            assert anchor in anchors(target), f"{page_id(page)} links to {link}: no such heading"


#: Pages whose commands take minutes.
SLOW = ("docs/clusters.md", "docs/getting-started.md", "docs/long-runs.md", "docs/sweeps.md")


def runnable_pages() -> list:
    """The pages that have code to run."""
    return [
        pytest.param(p, id=page_id(p), marks=[pytest.mark.slow] if page_id(p) in SLOW else [])
        for p in PAGES
        if RUNNABLE.search(p.read_text())
    ]


@pytest.mark.parametrize("page", runnable_pages())
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after another, in one folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # small work is slower on several threads
    names: dict[str, object] = {"__name__": "__main__"}
    for language, code in RUNNABLE.findall(page.read_text()):
        if language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
        else:
            assert language == "python"
            exec(compile(code, page_id(page), "exec"), names)


def test_the_program_of_the_readme_runs() -> None:
    """In small: it takes a minute and more with all its members."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert "steps=64" in code
    assert "members=64" in code
    names: dict[str, object] = {}
    exec(code.replace("steps=64", "steps=4").replace("members=64", "members=2"), names)
    assert names["posterior"].shape == (2, 65, 3)  # type: ignore[attr-defined]


def test_every_runnable_block_is_found() -> None:
    for page in PAGES:
        text = page.read_text()
        marked = len(re.findall(r"^<!-- runnable -->$", text, re.MULTILINE))
        assert marked == len(RUNNABLE.findall(text)), page_id(page)


def test_error_in_getting_started_is_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    init("lorenz63-quick", "mine.toml")
    with pytest.raises(ConfigError) as caught:
        load_experiment("mine.toml", ["kernel.width=hello", "observation.evry=1"])
    assert f"error: {caught.value}\n" in (DOCS / "getting-started.md").read_text()


def test_citations_exist() -> None:
    keys = re.findall(r"^@\w+\{(\w+),", (DOCS / "cite.bib").read_text(), re.MULTILINE)
    used = re.findall(r"`(\w+\d{4}\w*)`", (DOCS / "cite.md").read_text())
    assert sorted(keys) == sorted(set(used))
    assert len(keys) == len(set(keys))


COMPONENTS = EXAMPLES / "components"
TINY = tuple(f"--set=data.{size}" for size in ("trajectories=4", "length=5", "burn_in=0"))


@pytest.fixture
def examples(site: Any) -> Any:
    """The tutorial's components, installed as a plugin."""
    modules = {p.stem: p.read_text() for p in COMPONENTS.glob("*.py") if p.stem != "plugin"}
    site.add("sda-examples", (COMPONENTS / "plugin.py").read_text(), modules=modules)
    assert not site.manager().broken
    return site


class StandardNormal(Denoiser):
    """The exact denoiser of N(0, I)."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.scales(x_t, t)
        return alpha / (alpha**2 + sigma**2) * x_t


class Normal(Denoiser):
    """The exact denoiser of N(0, variance)."""

    def __init__(self, schedule: Schedule, variance: float) -> None:
        super().__init__(schedule)
        self.variance = variance

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.scales(x_t, t)
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2) * x_t


@pytest.mark.parametrize(
    ("kind", "name", "fields"),
    [
        ("system", "ornstein-uhlenbeck", {}),
        ("kernel", "linear", {}),
        ("sampler", "trapezoid", {}),
        ("guidance", "bounded", {}),
        ("observation", "magnitude", {"variables": ["u", "v"], "std": 0.5}),
    ],
)
def test_examples_conform(examples: Any, kind: str, name: str, fields: dict[str, Any]) -> None:
    check_component(kind, name, fields, manager=examples.manager())


def test_experiment_of_the_tutorial_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "double-pendulum" / "src"))
    plugin = importlib.import_module("sda_double_pendulum.plugin")
    manager = PluginManager(plugins={"sda-double-pendulum": plugin})
    file = EXAMPLES / "double-pendulum" / "experiment.toml"
    experiment = load_experiment(file, manager=manager)
    assert experiment.observation is not None
    length = experiment.assimilate.length
    assert experiment.observation.bind(experiment.system.spec, length).shape == (11, 1)


def test_sde_has_its_stationary_variance(examples: Any) -> None:
    system = examples.manager().get("system", "ornstein-uhlenbeck")(rate=2.0, noise=3.0)
    generator = torch.Generator().manual_seed(0)
    x = trajectory(system, system.prior((20_000,), generator), 1, generator, burn_in=30)
    # Euler-Maruyama with step h: noise^2 / (2 rate (1 - rate h / 2)).
    h = system.dt / system.substeps
    expected = 9 / (4 * (1 - h))
    assert x.var().item() == pytest.approx(expected, rel=0.05)


def test_kernel_is_linear(examples: Any) -> None:
    window = WindowShape(window=5, variables=2, grid=(4,))
    kernel = examples.manager().get("kernel", "linear")()
    network = kernel.build(window)
    x = torch.randn(3, *window.shape)
    torch.testing.assert_close(network(2 * x, torch.zeros(3)), 2 * network(x, torch.zeros(3)))


def test_sampler_has_its_order(examples: Any) -> None:
    cls = examples.manager().get("sampler", "trapezoid")
    schedule, variance = VE(sigma_min=0.01, sigma_max=10.0), 4.0
    denoiser = Normal(schedule, variance)

    def error(steps: int) -> float:
        noise = MemberNoise(0, range(8), dtype=torch.float64)
        sampler = cls(steps=steps, denoise_final=False)
        x = sampler.sample(denoiser, (8, 1, 1), noise)
        start = 10.0 * MemberNoise(0, range(8), dtype=torch.float64).normal((8, 1, 1))
        exact = start * ((variance + 0.01**2) / (variance + 10.0**2)) ** 0.5
        return float((x - exact).abs().max())

    slope = torch.tensor([error(n) for n in (64, 128, 256)]).log2().diff().mean()
    assert abs(-slope - cls.order) < 0.3


def test_guidance_is_exact_for_a_standard_normal_prior(examples: Any) -> None:
    prior = StandardNormal(VE())
    likelihood = Likelihood.gaussian(
        operator=lambda x: x[..., :1], y=torch.ones(3, 1), std=torch.full((3, 1), 0.5)
    )
    posterior = examples.manager().get("guidance", "bounded")()(prior, likelihood)
    x_t, t = torch.randn(4, 3, 2), torch.tensor(0.6)
    sigma = prior.schedule.sigma(t)
    precision = 1 + 1 / sigma**2 + torch.tensor([1 / 0.25, 0.0])
    expected = (x_t / sigma**2 + torch.tensor([1 / 0.25, 0.0])) / precision
    torch.testing.assert_close(posterior(x_t, t), expected)


def test_observation_gives_the_norm(examples: Any) -> None:
    cls = examples.manager().get("observation", "magnitude")
    spec = SystemSpec(variables=("u", "v", "w"), time_step=1.0)
    x = torch.tensor([[3.0, 9.0, 4.0], [6.0, 9.0, 8.0]])
    model = cls(variables=("u", "w"), std=0.1).bind(spec, 2)
    assert model.operator(x).tolist() == [5.0, 10.0]
    assert model.times is not None
    with pytest.raises(ConfigError, match=r"\['q'\], but this system has \['u', 'v', 'w'\]"):
        cls(variables=("q",), std=0.1).bind(spec, 2)


def test_examples_are_picked_by_name(examples: Any) -> None:
    listed = examples.sda("list", "sampler")
    assert "trapezoid" in listed.stdout
    done = examples.sda("simulate", "ornstein-uhlenbeck", *TINY, "--set=system.rate=2")
    assert done.returncode == 0, done.stderr
    assert (examples.path / "runs" / "ornstein-uhlenbeck" / "data" / "train.h5").is_file()


def test_journal_is_kept_and_shown(site: Any) -> None:
    site.add("sda-journal", (EXAMPLES / "journal" / "plugin.py").read_text())
    assert site.sda("simulate", "lorenz63", *TINY, "--dir=run").returncode == 0
    shown = site.sda("journal", "run")
    assert re.fullmatch(r"simulate took [\d.]+ s\n", shown.stdout), shown.stderr
