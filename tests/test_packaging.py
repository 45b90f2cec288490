"""What is published is whole, stands by itself, and says the same everywhere."""

import email
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import sk_dnn2gp

ROOT = Path(__file__).parents[1]
RELATIVE = re.compile(r"\]\((?!https?://|#)")
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="needs the checkout around the tests"
)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def lower_ends(text):
    """{"numpy": "1.24", ...} of lines with a >=."""
    return dict(re.findall(r"^[\s\"-]*([a-z-]+) ?>=([\d.]+)", text, re.M))


def required():
    """The lower ends of pyproject's dependencies."""
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", read("pyproject.toml"), re.M | re.S)
    return lower_ends(block)


# --------------------------------------------------------------------------- one fact, one number


def test_the_version_is_the_same_everywhere():
    version = sk_dnn2gp.__version__
    assert re.search(rf"^version: {re.escape(version)}$", read("CITATION.cff"), re.M)
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.M)[1] == version
    assert version in {entry["version"] for entry in json.loads(read("docs/switcher.json"))}


def recipe():
    """The conda recipe as conda-build reads it: a template first, then YAML."""
    jinja2, yaml = pytest.importorskip("jinja2"), pytest.importorskip("yaml")

    def load_file_regex(load_file, regex_pattern, from_recipe_dir):
        assert from_recipe_dir
        return re.search(regex_pattern, read(f"conda/{load_file}"))

    template = jinja2.Template(read("conda/meta.yaml"), undefined=jinja2.StrictUndefined)
    return yaml.safe_load(template.render(load_file_regex=load_file_regex, PYTHON="python"))


def test_the_conda_recipe_asks_for_the_same_versions():
    found = recipe()
    assert found["package"] == {"name": "sk_dnn2gp", "version": sk_dnn2gp.__version__}
    assert found["build"]["noarch"] == "python" and (ROOT / found["about"]["license_file"]).exists()
    host, run = (lower_ends("\n".join(found["requirements"][k])) for k in ("host", "run"))
    assert host["setuptools"] == re.search(r'"setuptools>=([\d.]+)"', read("pyproject.toml"))[1]
    python = re.search(r'python = ">=([\d.]+)"', read("pyproject.toml"))[1]
    assert host["python"] == run.pop("python") == python
    assert {("torch" if k == "pytorch" else k): v for k, v in run.items()} == required()


def test_the_oldest_versions_are_the_lower_ends():
    pins = dict(re.findall(r"^([a-z-]+)==([\d.]+)$", read("constraints-oldest.txt"), re.M))
    assert {name: pins[name].removesuffix(".0") for name in required()} == required()


def test_workflows_call_targets_that_the_makefile_has():
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))
    called = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for line in re.findall(r"run: make ([^\n]+)", path.read_text(encoding="utf-8")):
            called |= set(re.findall(r"(?<!\S)[a-z-]+(?!\S)", line))
    assert called and called <= targets


def test_workflows_run_the_pythons_of_the_metadata_and_their_steps_are_whole():
    yaml = pytest.importorskip("yaml")
    named = re.findall(r'Python :: (3\.\d+)"', read("pyproject.toml"))
    assert named[0] == re.search(r'python = ">=([\d.]+)"', read("pyproject.toml"))[1]
    jobs = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    run = {*matrix["python"], *(more["python"] for more in matrix["include"])}
    assert run == set(named)
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        for job in jobs.values():
            assert job["runs-on"] and job.get("needs", next(iter(jobs))) in jobs
            assert all(("uses" in step) != ("run" in step) for step in job["steps"])


# -------------------------------------------------------------------------- README as a page


def for_index(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **given: None)
    return runpy.run_path(str(ROOT / "setup.py"))["for_index"]


def test_readme_has_absolute_links_where_there_is_an_address(monkeypatch):
    page = for_index(monkeypatch)(read("README.md"), "https://files.example/v1")
    assert not RELATIVE.search(page)
    for link in re.findall(r"\(https://files\.example/v1/([^)]+)\)", page):
        assert (ROOT / link).exists()
    assert "](https://files.example/v1/docs/images/" in page


def test_readme_has_no_broken_links_where_there_is_none(monkeypatch):
    page = for_index(monkeypatch)(read("README.md"), "")
    assert not RELATIVE.search(page) and "![" not in page


# ----------------------------------------------------- source, wheel, and a clean environment


def run(*command, cwd):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


def files_of_the_project(target):
    """A copy of what belongs to the project, without what builds and tests left there."""
    names = run("git", "ls-files", cwd=ROOT).splitlines() if (ROOT / ".git").exists() else []
    if not names:
        pytest.skip("needs a git checkout")
    for name in names:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of the project, and the wheel that is built from that sdist alone."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    assert setuptools
    folder = tmp_path_factory.mktemp("built")
    source = files_of_the_project(folder / "source")
    build = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    run(sys.executable, "-c", build, "build_sdist", folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-c", build, "build_wheel", folder, cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[1]).namelist()
    code = {name for name in names if ".dist-info/" not in name}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sk_dnn2gp").rglob("*.py")}
    assert code == ours | {"sk_dnn2gp/py.typed"}
    assert built[1].name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_the_source_holds_what_its_tests_need(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"README.md", "LICENSE", "Makefile", "constraints.txt", "tests/conftest.py"}
    needed |= {"conda/meta.yaml", "docs/switcher.json", ".github/workflows/tests.yml"}
    assert needed <= names
    assert not {name for name in names if name.startswith(("benchmarks/", "docs/_build/"))}


@pytest.mark.slow
def test_the_metadata_are_those_of_an_index_page(built):
    archive = zipfile.ZipFile(built[1])
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Version"] == sk_dnn2gp.__version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip().startswith("# sk_dnn2gp")
    assert not RELATIVE.search(metadata.get_payload())
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in archive.namelist())


@pytest.mark.slow
def test_an_index_takes_source_and_wheel(built):
    pytest.importorskip("twine")
    said = run(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=built[0].parent)
    assert said.count("PASSED") == 2


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1], ids=["source", "wheel"])
def test_it_is_installed_in_a_clean_environment_and_fits(built, which, tmp_path):
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / ("Scripts" if os.name == "nt" else "bin") / "python"
    purelib = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
        .strip()
    )  # fmt: skip
    # What it depends on comes from the environment of this test: a path that is listed in a .pth
    # file is searched, but its own .pth files, and with them this checkout, are not.
    import numpy

    here = Path(numpy.__file__).parents[1]
    (purelib / "dependencies.pth").write_text(f"{here}\n")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    if which == 0:
        # The backend that this environment has: the clean one's own may be older.
        run(python, "-m", "pip", "uninstall", "-y", "--quiet", "setuptools", cwd=tmp_path)
    run(python, "-m", "pip", "install", *options, built[which], cwd=tmp_path)
    code = """
import sk_dnn2gp
model = sk_dnn2gp.DNN2GPRegressor(prior_precision=1.0, noise_std=0.1, random_state=0)
mean, std = model.fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 0.5]).predict([[3.0]], return_std=True)
print(sk_dnn2gp.__version__, sk_dnn2gp.__file__, bool(std[0] > 0), sep="\\n")
"""
    version, where, fits = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert (version, fits) == (sk_dnn2gp.__version__, "True")
    assert Path(where).is_relative_to(purelib)
