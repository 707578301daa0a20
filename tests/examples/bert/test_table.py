"""The table, by hand."""

from __future__ import annotations

from examples.bert.run_record import RunRecord, StepRow, ValidationRow
from examples.bert.table import stage_table


def test_one_line_a_stage() -> None:
    record = RunRecord(
        [
            StepRow(1, 1, 16, 32, 16, 0.5, 9.0),
            StepRow(2, 1, 1040, 32, 1024, 0.25, 7.0),
            StepRow(3, 2, 1048, 64, 8, 0.125, 6.5),
        ]
    )
    record.add_validation(ValidationRow(1, 1, 8.5, 0.1, 4915.0, 6.0))
    record.add_validation(ValidationRow(2, 1, 8.25, 0.25, 3827.0, 6.0))
    lines = [line.split("  ") for line in stage_table(record).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[1] == ["1", "2", "1,040", "32", "16-1,024", "0.5", "8.000", "8.250", "25.0%", "6.000"]
    assert cells[2] == ["2", "1", "8", "64", "8", "0.125", "6.500", "-", "-", "-"]
    assert len(cells[0]) == len(cells[1])
    assert len({len(line) for line in stage_table(record).splitlines()}) == 1


def test_a_second_validation_at_a_step_replaces_the_first() -> None:
    record = RunRecord()
    record.add_validation(ValidationRow(5, 1, 3.0))
    record.add_validation(ValidationRow(5, 1, 2.0))
    assert record.validations == [ValidationRow(5, 1, 2.0)]


def test_the_state_gives_the_rows_back() -> None:
    record = RunRecord([StepRow(1, 1, 4, 8, 4, 0.1, 2.0), StepRow(2, 1, 8, 8, 4, 0.1, 1.5, 0.1, 0.2, 0.3)])
    record.add_validation(ValidationRow(2, 1, 1.75, 0.5))
    copy = RunRecord()
    copy.load_state_dict(record.state_dict())
    assert copy == record
