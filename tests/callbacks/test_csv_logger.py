import math

import pytest

from fitkit.callbacks.csv_logger import CSVLogger
from fitkit.core.errors import ConfigurationError


def test_the_file_byte_for_byte(drive, tmp_path):
    path = tmp_path / "log.csv"
    drive(CSVLogger(path)).fit(
        [
            {"loss": 0.1 + 0.2, "lr": 1e-05},
            {"loss": math.inf, "lr": 1.0, "val_loss": math.nan},
            {"loss": 5e-324, "lr": 1.0},
        ]
    )
    assert path.read_bytes() == (
        b"epoch,loss,lr,val_loss\n0,0.30000000000000004,1e-05,\n1,inf,1.0,nan\n2,5e-324,1.0,\n"
    )


def test_another_separator_and_names_that_need_quotes(drive, tmp_path):
    path = tmp_path / "log.csv"
    drive(CSVLogger(path, separator=";")).fit([{"a;b": 1.0}, {"a;b": 2.0, 'c"': 3.0}])
    assert path.read_text() == 'epoch;"a;b";"c"""\n0;1.0;\n1;2.0;3.0\n'


@pytest.mark.parametrize("separator", ["", ",,", "\n", '"', None])
def test_bad_separators(separator):
    with pytest.raises(ConfigurationError, match="received"):
        CSVLogger("log.csv", separator=separator)


FORMULAS = ["=1+1", "+1+x", "-x", "@sum", "\tx", "'=1", "''=1"]


def test_no_name_begins_a_formula_and_a_resume_knows_the_names(drive, tmp_path):
    path = tmp_path / "log.csv"
    names = ["loss", "val_loss", *FORMULAS]
    values = {name: float(number) for number, name in enumerate(names)}
    drive(CSVLogger(path)).fit([values])
    columns, rows = CSVLogger(path).parse(path.read_text())
    assert columns == ["epoch", *names]
    assert rows == [{"epoch": "0", **{name: str(value) for name, value in values.items()}}]
    cells = [cell.strip('"') for cell in path.read_text().splitlines()[0].split(",")]
    assert not [cell for cell in cells if cell[0] in "=+-@\t"]
    drive(CSVLogger(path, append=True)).fit([values])
    assert path.read_text().count("\n") == 3


def test_numbers_stay_numbers(drive, tmp_path):
    path = tmp_path / "log.csv"
    drive(CSVLogger(path)).fit([{"a": -1.5, "b": -math.inf, "c": -1e-9}])
    assert path.read_text() == "epoch,a,b,c\n0,-1.5,-inf,-1e-09\n"
