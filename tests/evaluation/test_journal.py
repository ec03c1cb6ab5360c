import dataclasses

import pytest

from pipeline.evaluation.journal import FILE_NAME, Journal
from pipeline.evaluation.records import Answered
from schemas.errors import ConfigError

HEADER = {"questions": "q1", "model": "m1", "system": None}


def answered(number, *, setting="full", text="A", key="k"):
    return Answered(f"q{number}", setting, "v", key, text, text == "A", 5, 10)


def write(folder, *answers, header=HEADER):
    with Journal(folder, header) as journal:
        journal.add(answers)


def test_answers_are_there_again_for_the_same_header(tmp_path):
    write(tmp_path / "run", answered(1), answered(1, setting="budget=3", text="B\ud800\u2028"))
    with Journal(tmp_path / "run", HEADER) as journal:
        assert journal.find("full", "q1") == answered(1)
        assert journal.answer("budget=3", "q1").answer == "B\ud800\u2028"
        assert journal.find("full", "q2") is None


def test_the_later_answer_counts(tmp_path):
    write(tmp_path, answered(1, key="old"))
    write(tmp_path, answered(1, key="new"))
    with Journal(tmp_path, HEADER) as journal:
        assert journal.answer("full", "q1").video_key == "new"


@pytest.mark.parametrize("num_bytes", [1, 20, 100])
def test_a_torn_last_line_is_cut_off_and_written_again(tmp_path, num_bytes):
    write(tmp_path, answered(1), answered(2))
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-num_bytes])
    with Journal(tmp_path, HEADER) as journal:
        assert journal.find("full", "q1") is not None
        assert journal.find("full", "q2") is None
        journal.add([answered(2)])
    assert path.read_bytes() == whole


def test_a_torn_header_begins_anew(tmp_path):
    write(tmp_path, answered(1))
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    write(tmp_path, answered(1))
    assert path.read_bytes() == whole


def test_a_run_without_an_answer_leaves_the_folder_to_any_other(tmp_path):
    write(tmp_path, header={**HEADER, "model": "mistaken"})
    write(tmp_path, answered(1))
    with Journal(tmp_path, HEADER) as journal:
        assert journal.find("full", "q1") == answered(1)


def test_another_header_is_refused_and_says_what_differs(tmp_path):
    write(tmp_path, answered(1))
    with pytest.raises(
        ConfigError, match=r"another run: model 'm1', now 'm2'\. Give another --out"
    ):
        write(tmp_path, header={**HEADER, "model": "m2"})
    write(tmp_path, answered(2))


def test_a_file_of_something_else_and_a_damaged_line_are_refused_untouched(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_text('{"video_id": "a"}\n')
    with pytest.raises(ConfigError, match="does not hold answers of an evaluation"):
        write(tmp_path)
    path.unlink()
    write(tmp_path, answered(1), answered(2))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{}\n", lines[2]]))
    with pytest.raises(ConfigError, match="line 2 is not an answer"):
        write(tmp_path)
    assert path.read_bytes().startswith(lines[0])


def test_two_writers_at_once_are_refused(tmp_path):
    with Journal(tmp_path, HEADER), pytest.raises(ConfigError, match="another process"):
        write(tmp_path)
    write(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot write answers to"):
        write(tmp_path / "file" / "run")


def test_a_line_holds_every_field_of_an_answer(tmp_path):
    write(tmp_path, answered(1))
    line = (tmp_path / FILE_NAME).read_text().splitlines()[1]
    assert all(f'"{field.name}"' in line for field in dataclasses.fields(Answered))
