import ast
import subprocess
import sys
import textwrap

import pytest

from companion import sources
from companion.sources import closure, code_hash, imported_modules, source_hash


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package called companion in a folder of its own, for the hash to read."""
    files = {
        "__init__.py": "from companion.a import f\n",
        "a.py": "def f(x):\n    return x + 1\n",
        "b.py": "from companion import f\n\ndef g(x):\n    return f(x)\n",
        "c.py": "import math\n",
        "sub/__init__.py": "from .deep import thing as renamed\nLOCAL = 1\n",
        "sub/deep.py": "def thing():\n    from ..c import math\n    return math.pi\n",
        "d.py": "from companion.sub import renamed\n",
    }
    for name, code in files.items():
        path = tmp_path / "companion" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    monkeypatch.setattr(sources, "_ROOT", tmp_path)
    return tmp_path / "companion"


def test_the_hash_ignores_comments_docstrings_and_layout():
    code = "def f(x):\n    return x + 1\n"
    same = '''
        """Module."""
        # comment
        def f( x ):
            """Say something."""
            return (x
                    + 1)   # why
    '''
    assert code_hash(code) == code_hash(textwrap.dedent(same))


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return x + 2\n",
        "def f(y):\n    return y + 1\n",
        "def f(x):\n    return 1 + x\n",
    ],
)
def test_the_hash_sees_code(other):
    assert code_hash("def f(x):\n    return x + 1\n") != code_hash(other)


def test_strings_that_are_values_count():
    assert code_hash("x = 'a'") != code_hash("x = 'b'")
    assert code_hash("def f():\n    return 'a'") != code_hash("def f():\n    return 'b'")


def test_closure_follows_reexports_relative_and_late_imports(package):
    assert closure(["companion.b"]) == {"companion.b", "companion.a"}
    assert closure(["companion.d"]) == {
        "companion.d",
        "companion.sub",
        "companion.sub.deep",
        "companion.c",
    }


def test_a_change_far_down_changes_the_hash_and_a_stranger_does_not(package):
    before = source_hash(["companion.b"])
    (package / "c.py").write_text("import cmath\n")
    assert source_hash(["companion.b"]) == before
    (package / "a.py").write_text("def f(x):\n    return x + 2\n")
    assert source_hash(["companion.b"]) != before


def test_imported_modules_names_only_this_package():
    code = "import torch, companion.files\nfrom companion.results import Result as R\n"
    assert imported_modules(code) == {"companion.files", "companion.results"}


def test_unknown_module():
    with pytest.raises(ValueError, match=r"must be one of the package 'companion'.*'torch'"):
        source_hash(["torch"])


def test_the_spelling_leaves_out_what_python_versions_disagree_on():
    # `type_params` came in Python 3.12, and 3.13's ast.dump hides empty lists.
    spelled = sources.canonical(ast.parse("def f(x: int = 1):\n    pass"))
    assert spelled == (
        "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='x',annotation="
        "Name(id='int',ctx=Load()))],defaults=[Constant(value=1)]),body=[Pass()])])"
    )


def test_reading_imports_runs_nothing(package):
    (package / "c.py").write_text("raise SystemExit(3)\n")
    source_hash(["companion.d"])


def test_the_hash_is_the_same_in_another_process():
    code = "from companion.sources import source_hash; print(source_hash(['companion.train']))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == source_hash(["companion.train"])
