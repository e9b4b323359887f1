import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import companion
from companion.__main__ import main
from companion.claims import CATALOGUE
from companion.commands.new import CLAIM
from companion.commands.show import find_result
from companion.experiments import experiment
from companion.listing import entries
from companion.results import Findings, Result

ROOT = Path(__file__).parents[2]
TINY = ["--set", "depths=[2]", "--set", "seeds=1", "--set", "epochs=1"]


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, entry in zip(lines, entries().values(), strict=True):
        assert line.split()[:2] == [entry.id, entry.chapter]
        assert line.endswith(entry.title)


def test_list_of_one_tells_its_claims_and_parameters(capsys):
    assert main(["list", "S22-F3a"]) == 0
    out = capsys.readouterr().out
    for text in ("residual_steps", "CL57, CL58", "depths=(2, 4, 8, 16, 64)", "seeds=10"):
        assert text in out


def test_listing_and_errors_do_not_import_torch():
    code = """
import sys
from companion.__main__ import main
assert main(["list"]) == main(["list", "FW8-T"]) == 0
assert main(["run", "s22-f3a"]) == main(["list", "S22-F9"]) == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "experiment: 's22-f3a' is not allowed; did you mean 'S22-F3a'?" in done.stderr


def test_the_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"companion {companion.__version__}\n"


def test_show_prints_a_record_and_a_file(tmp_path, capsys):
    recorded = find_result("S22-F3a")
    recorded.save(tmp_path / "mine.json")
    for name in ("S22-F3a", "S22-F3a.smoke", str(tmp_path / "mine.json")):
        assert main(["show", name]) == 0
        out = capsys.readouterr().out
        assert out.startswith("S22-F3a, tier smoke, seed 0, cpu")
        assert "CL58 holds: " in out
        assert "depths: shape (5,)" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("S22-F3b.full", "the tiers ['smoke'] are recorded"),
        ("s22-f3a", "did you mean 'S22-F3a'?"),
        ("no/file.json", "it must be one of"),
    ],
)
def test_show_of_what_is_not_there(capsys, name, message):
    assert main(["show", name]) == main(["plot", name]) == 2
    assert message in capsys.readouterr().err


def test_plot_draws_every_curve(tmp_path, capsys):
    target = tmp_path / "curves.png"
    assert main(["plot", "S22-F3a", "--out", str(target)]) == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{target}\n"
    assert main(["plot", "Q20-PC.smoke", "--out", str(target)]) in (0, 2)


@pytest.mark.parametrize(
    ("out", "picture"),
    [(".", "S22-F3a.smoke.png"), ("mine", "mine.png"), ("mine.svg", "mine.svg")],
)
def test_plot_says_what_it_has_written(tmp_path, capsys, out, picture):
    assert main(["plot", "S22-F3a", "--out", str(tmp_path / out)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / picture}\n"
    assert [path.name for path in tmp_path.iterdir()] == [picture]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/curves.png", "curves.png' is not allowed; it must be a picture to write"),
        ("curves.xyz", "curves.xyz' is not allowed; it must be a picture to write"),
    ],
)
def test_plot_says_what_it_cannot_write(tmp_path, capsys, name, message):
    assert main(["plot", "S22-F3a", "--out", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("companion: error: --out: ")
    assert message in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_plot_takes_a_logarithm_of_what_spans_more_than_three_decades(tmp_path, monkeypatch):
    curves = {
        "steps": [1, 10, 100],
        "error": [[1e-8, 3e-8], [1e-4, 2e-4], [1, 2]],
        "three": [1, 10, 1000],
        "more": [1, 10, 1001],
        "zero": [0, 1, 1e6],
        "constant": [2, 2, 2],
        "infinite": [1e-6, 1, float("inf")],
    }
    path = tmp_path / "result.json"
    replace(find_result("S22-F3a"), findings=Findings({}, curves)).save(path)
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda own, _: drawn.append(own))
    assert main(["plot", str(path)]) == 0
    scales = {axes.get_title(): axes.get_yscale() for axes in drawn[0].axes}
    logs = {name for name, scale in scales.items() if scale == "log"}
    assert scales.keys() == curves.keys() - {"steps"}
    assert logs == {"error", "more", "infinite"}
    assert {axes.get_xscale() for axes in drawn[0].axes} == {"linear"}


def test_plot_draws_over_the_axis_that_a_list_belongs_to(tmp_path, monkeypatch):
    errors = [[[1, 2, 3, 4], [5, 6, 7, 8]]]  # one step, two seeds, four ratios
    curves = {"step": [0.1], "ratios": [1, 2, 4, 8], "errors": errors, "seeds": [1, 2]}
    path = tmp_path / "result.json"
    replace(find_result("S22-F3a"), findings=Findings({}, curves)).save(path)
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda own, _: drawn.append(own))
    assert main(["plot", str(path)]) == 0
    (axes,) = drawn[0].axes
    assert (axes.get_xlabel(), axes.get_title()) == ("ratios", "errors")
    assert axes.lines[0].get_xydata().tolist() == [[1, 3], [2, 4], [4, 5], [8, 6]]


def test_a_file_that_is_no_text_is_named(tmp_path, capsys):
    path = tmp_path / "curves.png"
    path.write_bytes(b"\x89PNG")
    assert main(["show", str(path)]) == 2
    assert f"{path} is not the JSON of a result" in capsys.readouterr().err


def test_a_record_gets_a_tiny_run_to_be_compared_with(tmp_path, capsys):
    assert main(["run", "Q20-ST", "--out", str(tmp_path)]) == 0
    result = Result.load(tmp_path / "Q20-ST.smoke.json")
    assert result.tiny is not None
    assert result.moved == ()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of what `companion new` writes to."""
    (tmp_path / "tests" / "experiments").mkdir(parents=True)
    (tmp_path / "companion" / "commands").mkdir(parents=True)
    shutil.copy(ROOT / "companion" / "claims.py", tmp_path / "companion")
    monkeypatch.setattr("companion.commands.new.__file__", str(tmp_path / "companion/commands/new"))
    return tmp_path


def test_new_writes_an_experiment_its_row_and_its_test(checkout, capsys, monkeypatch):
    claim = r'It is "true", or $\theta$ is false, and the line is longer than one row holds'
    assert main(["new", "FW99", "limits", "some", "words", "--claim", claim]) == 0
    out = capsys.readouterr().out
    module = checkout / "companion/experiments/limits/fw99_some_words.py"
    test = checkout / "tests/experiments/limits/test_fw99.py"
    for path in (module, test, checkout / "companion/claims.py"):
        assert str(path) in out
        compile(path.read_text(), path, "exec")
    spec = importlib.util.spec_from_file_location("claims", checkout / "companion/claims.py")
    claims = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "claims", claims)
    spec.loader.exec_module(claims)
    assert claims.CATALOGUE["FW99"].chapter == "limits"
    assert claims.CATALOGUE["FW99"].text == claim
    written = [*checkout.rglob("*.py")]
    settings = ["--config", str(ROOT / "pyproject.toml")]
    for command in (["check", "--select", "E,F,I"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, *settings, *written]
        done = subprocess.run(ruff, capture_output=True)
        assert done.returncode == 0, done.stdout
    assert '"FW99"' in module.read_text()
    assert (module.parent / "__init__.py").exists()


def test_new_for_a_claim_that_stands_in_the_catalogue_writes_no_row(checkout):
    before = (checkout / "companion/claims.py").read_text()
    assert main(["new", "FW99", "limits", "some", "words", "--claim", "CL58"]) == 0
    assert (checkout / "companion/claims.py").read_text() == before
    assert '("CL58", "worst"' in next(checkout.rglob("fw99_some_words.py")).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FW1", "limits", "a", "b"], "ID: 'FW1' is not allowed; it must be new"),
        (["fw99", "limits", "a", "b"], "ID: 'fw99' is not allowed"),
        (["FW99", "limit", "a", "b"], "chapter: 'limit' is not allowed; did you mean 'limits'?"),
        (["FW99", "limits", "A", "b"], "words: ('A', 'b') is not allowed"),
        (["FW99", "limits", "a", "b", "--claim", ""], "claim: '' is not allowed"),
        (["FW99", "limits", "a", "b", "--claim", "x" * 86], "it must be one line of 85"),
        (["FW99", "limits", "a", "b", "--claim", "a\nb"], "it must be one line of 85"),
    ],
)
def test_new_refuses_what_would_not_be_found(checkout, capsys, arguments, message):
    before = contents(checkout)
    assert main(["new", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert contents(checkout) == before


def test_nothing_stays_as_new_wrote_it(checkout):
    """No claim, title or docstring of the package is still that of the stub."""
    assert CLAIM not in {statement.text for statement in CATALOGUE.values()}
    main(["new", "FW99", "limits", "some", "words"])
    stub = (checkout / "companion/experiments/limits/fw99_some_words.py").read_text()
    lines = [line for line in stub.splitlines() if "One line" in line or "Say what is" in line]
    assert len(lines) == 2
    for path in (ROOT / "companion" / "experiments").rglob("*.py"):
        text = path.read_text()
        assert not any(line in text for line in lines), path


def test_run_writes_the_result_and_reports_the_claims(tmp_path, capsys):
    assert main(["run", "S22-F3a", "--out", str(tmp_path), "--seed", "2", *TINY]) == 0
    path = tmp_path / "S22-F3a.smoke.json"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    result = Result.load(path)
    assert result.experiment == "S22-F3a"
    assert result.provenance.seed == 2
    assert result.provenance.parameters["depths"] == (2,)
    captured = capsys.readouterr()
    # Two layers train without 1/N, so the claim that deep ones do not must miss here.
    assert "CL58 MISSES" in captured.out
    assert str(path) in captured.out
    assert "100%" in captured.err


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    for name in ("a", "b"):
        main(["run", "S22-F3a", "--out", str(tmp_path / name), *TINY])
    first, second = (Result.load(tmp_path / n / "S22-F3a.smoke.json").findings for n in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["S22-F9"], "did you mean 'S22-F"),
        (["S22-F3a", "--tier", "huge"], "['smoke', 'full', 'tiny']"),
        (["S22-F3a", "--set", "depth=[2]"], "did you mean 'depths'"),
        (
            ["S22-F3a", "--set", "depths=two"],
            "--set: 'depths=two' is not allowed; it must be NAME=JSON",
        ),
        (["S22-F3a", "--set", "depths"], "the = is missing"),
        (["S22-F3a", "--set", 'depths="two"'], "depths: 'two' is not allowed; it must be a tuple"),
        (["S22-F3a", "--set", "depths=[]"], "depths: [] is not allowed; it must hold something"),
        (["S22-F3a", "--set", "depths=[2,0]"], "depths: 0 is not allowed; it must be at least 1"),
        (["S22-F3a", "--set", "seeds=0"], "seeds: 0 is not allowed; it must be at least 1"),
        (["S22-F3a", "--set", "rate=-1"], "Invalid learning rate: -1.0"),
        (["S22-F3b", "--tier", "full", "--data", "/nowhere"], "folder: '/nowhere'"),
        (["S22-F3a", "--device", "gpu"], "device must be one of ['cpu'"),
        (["S22-F3a", "--device", "nonsense"], "got 'nonsense'"),
        (["S22-F3a", "--device", "meta"], "device: 'meta' is not allowed; it must be cpu"),
        (["S22-F3a", "--device", "mps"], "'mps'"),
        (["S22-F3a", "--seed", "-1"], "seed: -1 is not allowed; it must be an integer from 0"),
        (["S22-F3a", "--seed", str(2**63)], f"seed: {2**63} is not allowed"),
        (
            ["S22-F3a", "--every", "120"],
            "every: 120.0 is not allowed; it must lie between 0 and 60",
        ),
    ],
)
def test_unknown_names_exit_with_the_known_ones(tmp_path, capsys, arguments, message):
    assert main(["run", "--out", str(tmp_path), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RecursionError, ImportError, KeyboardInterrupt])
def test_ctrl_c_is_known_by_what_follows_from_it(capsys, monkeypatch, error):
    """Importing scipy takes an interruption for a missing name, and ends in a RecursionError."""

    def interrupted(options):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    monkeypatch.setattr("companion.__main__._list", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "companion: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_an_import_loses_stops_the_run(tmp_path, monkeypatch):
    """What is imported may go on after any exception."""

    def locating(id):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("companion.__main__.locate", locating)
    assert main(["run", "Q20-ST", "--out", str(tmp_path)]) == 130
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert main(["run", "Q20-ST", "--tier", "tiny", "--out", str(tmp_path)]) == 0


def test_other_errors_are_no_interruption_and_an_ignored_signal_stays_so(monkeypatch):
    def failing(options):
        signal.raise_signal(signal.SIGINT)
        raise RecursionError

    monkeypatch.setattr("companion.__main__._list", failing)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell script
    try:
        with pytest.raises(RecursionError):
            main(["list"])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_listing_ends_when_its_reader_has_seen_enough(unbuffered):
    command = [sys.executable, "-m", "companion", "list"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        done.stdout.close()  # before anything is written
        assert done.stderr.read() == b""
        assert done.wait() == 0


def test_a_tiny_run_says_that_its_claims_say_nothing(tmp_path, capsys):
    command = ["run", "Q20-ST", "--out", str(tmp_path)]
    assert main([*command, "--tier", "tiny"]) == 0
    assert "whether its claims hold says nothing" in capsys.readouterr().out
    assert main(command) == 0
    assert "says nothing" not in capsys.readouterr().out


def test_no_command_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2
    assert "{list,run,show,plot,new}" in capsys.readouterr().err


def test_the_exit_status_reaches_the_shell():
    command = [sys.executable, "-m", "companion", "run", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "experiment: 'nothing' is not allowed" in done.stderr


def test_global_settings_come_back(tmp_path):
    before = torch.are_deterministic_algorithms_enabled()
    main(["run", "S22-F3a", "--out", str(tmp_path), *TINY])
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.fixture
def squares(monkeypatch):
    """An experiment of three parts in the place of all others, and what steers and watches it."""
    watch = {"fail_at": None, "computed": []}

    def compute(part, x, power):
        if x == watch["fail_at"]:
            raise KeyboardInterrupt
        watch["computed"].append(x)
        return x**power

    def function(run, *, power=2):
        return Findings(run.map(compute, {str(x): (x, power) for x in range(3)}))

    # As if it lay in the package: the provenance hashes the code of the function's module.
    function.__module__ = "companion.train"
    entry = experiment("X", "a test", paper="none", claims=(), full={})(function)
    monkeypatch.setattr("companion.__main__.locate", lambda id: None)
    monkeypatch.setattr("companion.commands.run.find", lambda id: entry)
    monkeypatch.setattr("companion.commands.run.checked", lambda result, entry: result)
    return watch


def run_squares(out, *options):
    return main(["run", "X", "--out", str(out), *options])


def interrupt(watch, out, *options):
    watch["fail_at"] = 2
    assert run_squares(out, *options) == 130
    watch["fail_at"] = None
    watch["computed"].clear()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ctrl_c_says_how_to_go_on_and_resume_does(tmp_path, capsys, squares):
    interrupt(squares, tmp_path)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "companion: interrupted; the same command with --resume goes on"
    assert run_squares(tmp_path, "--resume") == 0
    assert squares["computed"] == [2]
    assert Result.load(tmp_path / "X.smoke.json").findings.scalars == {"0": 0, "1": 1, "2": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "X.smoke.parts: add --resume"),
        (["--resume", "--seed", "5"], "which differs in seed (0 there, 5 here); remove"),
        (["--resume", "--set", "power=3"], "in parameters.power (2 there, 3 here); remove"),
    ],
)
def test_an_interrupted_run_is_kept(tmp_path, capsys, squares, options, message):
    interrupt(squares, tmp_path)
    before = contents(tmp_path)
    assert run_squares(tmp_path, *options) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert squares["computed"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "another run, which differs in seed (0 there, 1 here)"),
        (["--set", "power=3"], "another run, which differs in parameters.power (2 there, 3 here)"),
    ],
)
def test_resume_keeps_the_finished_result_of_another_run(
    tmp_path, capsys, squares, options, message
):
    run_squares(tmp_path)
    before = contents(tmp_path)
    assert run_squares(tmp_path, "--resume", *options) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert run_squares(tmp_path, *options) == 0
    assert contents(tmp_path) != before


def test_resume_leaves_the_same_finished_run_alone(tmp_path, capsys, squares):
    run_squares(tmp_path)
    before = contents(tmp_path)
    squares["computed"].clear()
    assert run_squares(tmp_path, "--resume") == 0
    assert "X.smoke.json is complete" in capsys.readouterr().out
    assert squares["computed"] == []
    assert contents(tmp_path) == before


def test_the_parts_are_kept_until_the_result_is_saved(tmp_path, capsys, squares, monkeypatch):
    """A kill just before, in the middle of or just after saving loses nothing."""
    save, parts = Result.save, tmp_path / "X.smoke.parts"

    def killed_before(result, path):
        raise KeyboardInterrupt

    def killed_after(result, path):
        assert len(list(parts.glob("*.json"))) == 4
        save(result, path)
        raise KeyboardInterrupt

    for killed in (killed_before, killed_after):
        monkeypatch.setattr(Result, "save", killed)
        assert run_squares(tmp_path, "--resume") == 130
    assert squares["computed"] == [0, 1, 2]
    saved = (tmp_path / "X.smoke.json").read_bytes()
    monkeypatch.setattr(Result, "save", save)
    assert run_squares(tmp_path, "--resume") == 0
    assert "X.smoke.json is complete" in capsys.readouterr().out
    assert contents(tmp_path) == {tmp_path / "X.smoke.json": saved}
    assert squares["computed"] == [0, 1, 2]


def test_a_kill_while_the_parts_are_removed_leaves_a_run_to_resume(tmp_path, squares, monkeypatch):
    unlink, removed = Path.unlink, []

    def killed_at_the_second(path, **options):
        if path.suffix == ".json" and len(removed) == 1:
            raise KeyboardInterrupt
        unlink(path, **options)
        removed.extend([path] if path.suffix == ".json" else [])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_at_the_second)
        assert run_squares(tmp_path) == 130
    assert (tmp_path / "X.smoke.parts" / "run.json").exists()
    assert run_squares(tmp_path, "--resume") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["X.smoke.json"]


def test_a_finished_run_leaves_the_parts_of_another_alone(tmp_path, squares):
    run_squares(tmp_path)
    interrupt(squares, tmp_path, "--seed", "1")
    before = contents(tmp_path)
    assert run_squares(tmp_path, "--resume") == 0
    assert contents(tmp_path) == before


def test_a_run_begun_to_replace_a_result_can_be_resumed(tmp_path, squares):
    run_squares(tmp_path)
    interrupt(squares, tmp_path, "--seed", "1")
    assert run_squares(tmp_path, "--seed", "1", "--resume") == 0
    assert squares["computed"] == [2]
    assert Result.load(tmp_path / "X.smoke.json").provenance.seed == 1


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_a_place_that_cannot_be_written(tmp_path, capsys, squares, place):
    (tmp_path / "file").write_text("kept")
    assert run_squares(tmp_path / place) == 2
    assert "it must be a folder that can be written" in capsys.readouterr().err
    assert squares["computed"] == []
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_in_the_place_of_the_result(tmp_path, capsys, squares):
    (tmp_path / "X.smoke.json").mkdir()
    assert run_squares(tmp_path) == 2
    assert "X.smoke.json is a folder" in capsys.readouterr().err
    assert squares["computed"] == []
