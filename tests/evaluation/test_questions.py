import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.questions import read_questions
from pipeline.evaluation.scoring import is_right
from schemas.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """A function rows -> the path of a JSON lines file that holds them."""

    def write(*rows, name="questions.jsonl"):
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path

    return write


def asked(answer, options=None, **columns):
    row = {"video_id": "a.mp4", "question": "Which colour?", "answer": answer, **columns}
    return row if options is None else {**row, "options": options}


def test_short_answers_keep_their_text_and_everything_else_is_a_column(write):
    path = write(asked("Red ", kind="colour", level=2, seen=[1, 2]), asked(3))
    first, second = read_questions([path])
    assert (first.video_id, first.text, first.answer) == ("a.mp4", "Which colour?", "Red")
    assert first.columns == {"kind": "colour", "level": 2, "seen": "[1, 2]"}
    assert (second.answer, second.options, second.question_id) == ("3", (), "questions:2")


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("B", ["red", "blue"], "B"),
        ("(B)", ["red", "blue"], "B"),
        ("blue", ["red", "blue"], "B"),
        ("Blue.", ["red", "blue"], "B"),
        ("Red", ["red", "Red"], "B"),
        (7, [5, 7], "B"),
        ("A", ["A", "B"], "A"),
        ("B. blue", ["A. red", "B. blue"], "B"),
        ("red", ["red", "blue", "red"], "A"),
    ],
)
def test_an_answer_is_the_letter_of_an_option_or_its_text(write, answer, options, letter):
    [question] = read_questions([write(asked(answer, options))])
    assert question.answer == letter


def test_letters_are_taken_off_options_only_where_all_carry_their_own(write):
    path = write(asked("A", ["A. red", "B) blue"]), asked("A", ["A. Smith", "C. Jones"]))
    lettered, plain = read_questions([path])
    assert lettered.options == ("red", "blue")
    assert plain.options == ("A. Smith", "C. Jones")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (asked("green", ["red", "blue"]), "is none of the options"),
        (asked("C", ["red", "blue"]), "is none of the options"),
        (asked("A", ["B", "A"]), "more than one of the options"),
        (asked("RED", ["red", "Red"]), "more than one of the options"),
        (asked("A", ["red"]), "a list of 2 to 26 options"),
        (asked("A", "red"), "a list of 2 to 26 options"),
        (asked("A", ["red", None]), "an option is neither"),
        (asked(""), "'answer' is ''"),
        (asked(None), "'answer' is None"),
        (asked(True), "'answer' is True"),
        ({"video_id": "a", "question": "Who?"}, "'answer' is missing"),
        ({"video_id": 0.5, "question": " ", "answer": "x"}, "'question' is ' '"),
    ],
    ids=str,
)
def test_a_question_that_cannot_be_scored_is_refused_with_its_line(write, row, said):
    path = write(asked("red"), row)
    with pytest.raises(ConfigError) as caught:
        read_questions([path])
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"video_id": "a"\n', "line 1: not JSON"),
        (b'{"video_id": "a", "question": "q", "answer": "x"}\n[1]\n', "line 2: expected a JSON"),
        (b"[1]", "object 1: expected a JSON object"),
        (b"[{]", "not JSON"),
        (b"\n\n", "holds no question"),
        (b"[]", "holds no question"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_place(tmp_path, body, said):
    path = tmp_path / "questions.json"
    path.write_bytes(body)
    with pytest.raises(ConfigError, match=said):
        read_questions([path])


def test_a_missing_file_and_a_parquet_that_is_none_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read questions .*none\.jsonl: No such file"):
        read_questions([tmp_path / "none.jsonl"])
    (tmp_path / "q.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="is no Parquet file"):
        read_questions([tmp_path / "q.parquet"])


@pytest.mark.parametrize(
    "row",
    [
        asked("red", note="half \ud800"),
        {**asked("red"), "question": "Which \ud800?"},
        asked("\udfff"),
        asked("red", ["red", "\ud83d"]),
        asked("red", **{"\ud800": 1}),
        asked("red", seen=[{"a": "\ud800"}]),
    ],
    ids=["column", "question", "answer", "option", "key", "nested"],
)
def test_text_that_is_not_unicode_is_refused_with_its_line(write, row):
    path = write(asked("red"), row)
    with pytest.raises(ConfigError, match=r"half of a surrogate pair.*; write the whole") as caught:
        read_questions([path])
    assert str(caught.value).startswith(f"{path}, line 2: ")
    str(caught.value).encode()


def test_an_id_given_twice_is_refused_with_both_places(write):
    path = write(asked("x", question_id=7), asked("y", question_id="7"))
    with pytest.raises(ConfigError, match="1 question id is given more than once, ") as caught:
        read_questions([path])
    assert f"'7' at {path}, line 1 and {path}, line 2; give each question an" in str(caught.value)


def test_several_ids_given_twice_are_counted(write):
    path = write(*[asked("x", question_id=each) for each in "abab"])
    with pytest.raises(ConfigError, match="2 question ids are given more than once, the first 'a'"):
        read_questions([path])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("option", "options"),
        ("Options", "options"),
        ("OPTIONS ", "options"),
        ("opions", "options"),
        ("question_ID", "question_id"),
        ("questionId", "question_id"),
        ("question-id", "question_id"),
        ("Answer", "answer"),
        ("optoins", "options"),
        ("question_di", "question_id"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_place_and_the_right_name(write, found, expected):
    row = asked("red")
    if expected == "answer":
        del row["answer"]
    path = write(asked("red", ["red", "blue"], question_id="1"), {**row, found: ["red", "blue"]})
    with pytest.raises(ConfigError) as caught:
        read_questions([path])
    assert str(caught.value) == (
        f"{path}, line 2: found the key {found!r}, expected {expected!r}; rename it (a column of "
        "its own needs a name less alike)"
    )


def test_a_key_like_another_is_a_column_where_both_are_there(write):
    row = asked("red", ["red", "blue"], question_id="1", option="x", question_ID="y")
    [question] = read_questions([write(row)])
    assert question.columns == {"option": "x", "question_ID": "y"}


def test_a_misspelt_key_that_holds_nothing_is_a_column(write):
    [question] = read_questions([write(asked("red", option=None))])
    assert question.columns == {"option": None}


def test_columns_whose_names_are_not_close_are_columns(write):
    columns = {"question_kind": 1, "question_type": 2, "motions": 3, "num_options": 4, "id": 5}
    [question] = read_questions([write(asked("red", **columns))])
    assert question.columns == columns


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize(
    ("row", "key"),
    [
        ('{"video_id": "a", "question": "q", "answer": VALUE}', "answer"),
        ('{"video_id": "a", "question": "q", "answer": "x", "seen": [{"at": VALUE}]}', "seen"),
    ],
)
def test_a_number_that_json_does_not_have_is_refused_with_its_place(tmp_path, row, key, name):
    good = json.dumps(asked("red"))
    bad = row.replace("VALUE", name)
    bodies = {"line": f"{good}\n{bad}\n", "object": f"[{good},\n{bad}]"}
    for place, body in bodies.items():
        path = tmp_path / "q.json"
        path.write_text(body, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            read_questions([path])
        assert str(caught.value) == (
            f"{path}, {place} 2: {key!r}: not JSON (found {name}); expected a number, null, or "
            "text in quotes"
        )


def test_an_answer_that_is_nan_in_a_parquet_file_is_no_text(tmp_path):
    path = tmp_path / "q.parquet"
    pq.write_table(pa.Table.from_pylist([asked(1.5), asked(float("nan"))]), path)
    with pytest.raises(ConfigError, match=r"row 2: 'answer' is nan; expected text that is not emp"):
        read_questions([path])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            '{"video_id": "a", "question": "q", "answer": "x", "answer": "y"}',
            "line 1: 'answer': the key 'answer' is given twice in one object; keep one of the two",
        ),
        (
            '[{"video_id": "a", "question": "q", "answer": "x", "of": {"n": 1, "n": 1}}]',
            "object 1: 'of': the key 'n' is given twice in one object; keep one of the two",
        ),
    ],
)
def test_a_key_given_twice_in_one_object_is_refused(tmp_path, body, told):
    path = tmp_path / "q.json"
    path.write_text(body, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_questions([path])
    assert str(caught.value) == f"{path}, {told}"


def test_a_short_answer_of_marks_alone_keeps_them(write):
    [question] = read_questions([write(asked("..."))])
    given = ["...", " ... ", "", "."]
    assert [is_right(question, answer) for answer in given] == [True, True, False, False]


@pytest.mark.parametrize("indent", [None, 1], ids=["one line", "several lines"])
@pytest.mark.parametrize(
    "wrapped",
    [
        {"data": [asked("red"), asked("blue")]},
        {"version": 2, "test": [asked("red")]},
        {"questions": [asked("red")]},
    ],
    ids=lambda value: ",".join(value),
)
def test_an_object_round_the_list_of_questions_is_refused(tmp_path, wrapped, indent):
    path = tmp_path / "q.json"
    path.write_text(json.dumps(wrapped, indent=indent), encoding="utf-8")
    for layout in ("auto", "tokenreel"):
        with pytest.raises(ConfigError) as caught:
            read_questions([path], layout=layout)
        assert str(caught.value) == (
            f"{path}: expected a list of objects or one object per line; found one object with "
            f"the list {list(wrapped)[-1]!r}; save that list alone"
        )


def test_one_question_on_several_lines_is_refused_as_that(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps(asked("red"), indent=1), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"found one object on several lines; write it on one li"):
        read_questions([path])


def test_a_lone_question_with_a_list_of_objects_is_a_question(write):
    [question] = read_questions([write(asked("red", seen=[{"at": 1}]))])
    assert question.columns == {"seen": '[{"at": 1}]'}


@pytest.mark.parametrize("name", ["q.csv", "q.txt"])
def test_a_file_of_another_kind_is_told_which_are_read(tmp_path, name):
    path = tmp_path / name
    path.write_text("video_id,question,answer\na.mp4,Which?,red\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_questions([path])
    assert str(caught.value).startswith(f"{path}, line 1: not JSON (Expecting value")
    assert str(caught.value).endswith(
        f"; questions are read from .jsonl, .json and .parquet, and this is {name}"
    )


def test_lines_of_json_are_read_under_any_name(write):
    [question] = read_questions([write(asked("red"), name="questions.txt")])
    assert question.answer == "red"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_file_saved_as_utf_16_is_told_to_be_saved_as_utf_8(tmp_path, encoding):
    path = tmp_path / "q.jsonl"
    path.write_bytes(f"\ufeff{json.dumps(asked('red'))}\n".encode(encoding))
    with pytest.raises(ConfigError) as caught:
        read_questions([path])
    assert str(caught.value) == (
        f"{path} is not UTF-8 text (it begins with the mark of UTF-16); save it as UTF-8"
    )


def test_files_of_one_name_without_ids_are_told_to_be_renamed(write, tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(write(asked("x"), name=f"{folder}/q.jsonl"))
    with pytest.raises(ConfigError, match=r"'q:1' at .*a/q\.jsonl, line 1 and .*b/") as caught:
        read_questions(paths)
    assert "a question without an id gets its file's name and its place there" in str(caught.value)
    assert "rename one of the files" in str(caught.value)


def test_a_file_given_twice_is_refused_as_that(write):
    path = write(asked("x", question_id="one"))
    with pytest.raises(ConfigError, match=r"questions\.jsonl is given twice; give each file once"):
        read_questions([path, path])


def test_several_files_are_one_set_of_questions(write):
    files = [write(asked("x"), name="one.jsonl"), write(asked("y"), name="two.jsonl")]
    assert [each.question_id for each in read_questions(files)] == ["one:1", "two:1"]
