"""The house's import rules, read from the source with ast: who may import whom, who may print, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 350
ROOMS = ("scene", "cameras", "model", "parallel", "fetching", "frames", "commands", "workflows", "kernels", "cli", "configs")
GROUND_FLOOR = ("errors", "job", "job_sections", "job_template", "chunks", "events", "compat", "landmark_options")
OBJECTS = ("object_path", "object_client")


@cache
def sources() -> list[Path]:
    folders = [ROOT / "landmark_batch", ROOT / "kernels", ROOT / "workflows"]
    return [ROOT / "cli.py", *sorted(file for folder in folders for file in folder.rglob("*.py"))]


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def module(file: Path) -> str:
    """'landmark_batch.frames.store' for landmark_batch/frames/store.py, 'landmark_batch.workflows.plan' for workflows/plan.py."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    parts = parts if parts[0] == "landmark_batch" else ["landmark_batch", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    """'frames', 'workflows', 'kernels', 'cli', ...; '' for other packages and for modules of the ground floor (errors, job, ...)."""
    parts = name.split(".")
    return parts[1] if parts[0] == "landmark_batch" and len(parts) > 1 and parts[1] in ROOMS else ""


def here(file: Path) -> str:
    return room(module(file))


@cache
def imports(file: Path) -> list[tuple[str, int, bool]]:
    """(absolute name, line, whether it was written as a relative import)."""
    return list(_imports(file))


def _imports(file: Path) -> Iterator[tuple[str, int, bool]]:
    package = module(file) if file.name == "__init__.py" else module(file).rpartition(".")[0]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, False
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno, bool(node.level)


def place(file: Path, line: int, what: str) -> str:
    return f"{file.relative_to(ROOT)}:{line}: {what}"


def found(file: Path, *names: str) -> list[str]:
    """Imports of `names` or of what is in them."""
    return [place(file, line, name) for name, line, _ in imports(file) if any(name == bad or name.startswith(f"{bad}.") for bad in names)]


def test_the_files_are_found() -> None:
    """The rules below are worth something only if they see the house."""
    modules = {module(file) for file in sources()}
    assert {"landmark_batch", "landmark_batch.cli", "landmark_batch.job", "landmark_batch.commands.render"} <= modules
    assert any(name.startswith("landmark_batch.kernels") for name in modules)
    seen = {name for file in sources() for name, _, _ in imports(file)}
    assert any(name.startswith("torch") for name in seen)
    assert any(relative for file in sources() for _, _, relative in imports(file))


def test_layers() -> None:
    """cli and commands -> workflows -> landmark_batch -> kernels -> torch; frames and model do not know each other."""
    wrong = []
    for file in sources():
        for name, line, _ in imports(file):
            there, ours = room(name), here(file)
            if ours == "kernels":
                upward = name.startswith("landmark_batch") and there != "kernels"
            elif ours == "workflows":
                upward = there in ("cli", "commands")
            else:
                upward = ours not in ("cli", "commands") and there in ("cli", "commands", "workflows")
            if upward or {ours, there} == {"frames", "model"}:
                wrong.append(place(file, line, name))
    assert not wrong


@pytest.mark.parametrize(
    ("packages", "rooms", "modules"),
    [
        (("dask", "distributed", "dask_cuda", "dask_jobqueue"), ("workflows",), ()),
        (("click", "rich"), ("cli", "commands"), ()),
        (("zarr",), ("frames",), ("landmark_batch.scene.store",)),
        (("torch.distributed",), ("parallel",), ()),
        (
            ("subprocess",),
            (),
            (
                "landmark_batch.kernels.build",
                "landmark_batch.kernels.ninja_run",
                "landmark_batch.workflows.cluster",
                "landmark_batch.frames.process_pool",
            ),
        ),
    ],
    ids=lambda value: value[0] if value and isinstance(value, tuple) else "",
)
def test_packages_stay_in_their_rooms(packages: tuple[str, ...], rooms: tuple[str, ...], modules: tuple[str, ...]) -> None:
    outside = [file for file in sources() if here(file) not in rooms and module(file) not in modules]
    assert not [line for file in outside for line in found(file, *packages)]


def test_relative_imports_stay_inside_a_room() -> None:
    wrong = [
        place(file, line, name) for file in sources() for name, line, relative in imports(file) if relative and room(name) != here(file)
    ]
    assert not wrong


def test_the_environment_is_read_at_the_edges_alone() -> None:
    wrong = []
    for file in sources():
        if here(file) in ("cli", "commands") or module(file) == "landmark_batch.workflows.worker":
            continue
        wrong += found(file, "os.environ", "os.getenv", "os.putenv")
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv"):
                wrong.append(place(file, node.lineno, ast.unparse(node)))
    assert not wrong


def test_only_the_command_line_prints() -> None:
    wrong = []
    for file in sources():
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write"):
                wrong += [] if here(file) in ("cli", "commands") else [place(file, node.lineno, ast.unparse(node.func))]
    assert not wrong


def test_a_file_holds_one_concept() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in sources()}
    assert {name: length for name, length in lengths.items() if length > LIMIT} == {}


def test_nothing_is_loaded_that_could_run_code() -> None:
    """torch.load says weights_only=True; eval, exec and pickle.load do not occur."""
    wrong = []
    for file in sources():
        for node in ast.walk(tree(file)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            loads_safely = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
            if name in ("eval", "exec", "pickle.load", "pickle.loads") or (name == "torch.load" and not loads_safely):
                wrong.append(place(file, node.lineno, name))
    assert not wrong


@pytest.mark.parametrize("name", GROUND_FLOOR + OBJECTS)
def test_the_ground_floor_knows_no_room_and_no_torch(name: str) -> None:
    file = ROOT / "landmark_batch" / f"{name}.py"
    assert not found(file, "torch", "numpy", "zarr", "dask")
    assert not [name for name, _, _ in imports(file) if room(name)]


def test_what_shall_start_quickly_imports_no_torch() -> None:
    """--help, every command's --help, status, info, plan, and the client of a cluster, in a process of their own."""
    program = (
        "import sys\n"
        "from landmark_batch.cli import COMMANDS, cli\n"
        "assert not {'torch', 'numpy', 'zarr', 'dask', 'pydantic'} & set(sys.modules), 'cli itself'\n"
        "for name in COMMANDS:\n"
        "    assert cli.get_command(None, name).name == name\n"
        "assert not {'torch', 'zarr', 'dask', 'distributed'} & set(sys.modules), 'a command module'\n"
        "from landmark_batch.frames.store import FrameStore\n"
        "from landmark_batch.frames.owner import store_owners\n"
        "assert not {'torch', 'dask', 'distributed'} & set(sys.modules), 'status'\n"
        "import landmark_batch.scene.info, landmark_batch.workflows.plan\n"
        "assert not {'torch', 'distributed'} & set(sys.modules), 'info and plan'\n"
        "import landmark_batch.workflows.render, landmark_batch.workflows.cluster, landmark_batch.fetching.flight_blocks\n"
        "assert 'torch' not in sys.modules, 'a client'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
