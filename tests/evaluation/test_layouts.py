import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.questions import read_questions
from schemas.errors import ConfigError

VIDEO_MME = [
    {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Technology",
        "url": "https://example.com/watch?v=aB-3_x",
        "videoID": "aB-3_x",
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "How many cranes are there?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
        "answer": "C",
    },
    {
        "video_id": "301",
        "duration": "medium",
        "domain": "Sports Competition",
        "sub_category": "Other Sports",
        "url": "https://example.com/watch?v=zz",
        "videoID": "zz",
        "question_id": "301-2",
        "task_type": "Action Recognition",
        "question": "What does the runner do first?",
        "options": ["A. Jumps.", "B. Waves.", "C. Rests.", "D. Bows."],
        "answer": "A",
    },
]

MVBENCH = [
    {
        "video": "X1Y2.mp4",
        "question": "What did the person do with the cup?",
        "candidates": ["Washed it.", "Hid it.", "Broke it."],
        "answer": "Hid it.",
        "start": 2.5,
        "end": 9.0,
    },
    {
        "video": "rooms/7.webm",
        "question": "Which letters are shown?",
        "candidates": ["A", "C", "B"],
        "answer": "B",
    },
]

MLVU = [
    {
        "video": "needle_1.mp4",
        "duration": 480.5,
        "question": "What lies on the bench?",
        "candidates": ["A hat", "A book", "A kite", "A shoe"],
        "answer": "A kite",
        "question_type": "findNeedle",
    },
    {
        "video": "ego_2.mp4",
        "duration": 300,
        "question": "Where did I put the keys?",
        "candidates": ["shelf", "sofa", "door", "sink"],
        "answer": "shelf",
        "question_type": "ego",
    },
]

LONGVIDEOBENCH = [
    {
        "video_id": "q1w2",
        "question": "When the bell rings, who stands up?",
        "question_wo_referring_query": "Who stands up?",
        "candidates": ["the cook", "the guard", "the child", "the baker", "nobody"],
        "correct_choice": 4,
        "position": [120, 300],
        "topic_category": "LC-Lifestyle-Cooking-Recipes",
        "question_category": "E2O",
        "level": "L1-Perception",
        "id": "q1w2_0",
        "video_path": "q1w2.mp4",
        "subtitle_path": "q1w2_en.json",
        "duration_group": 60,
        "starting_timestamp_for_subtitles": 0,
        "duration": 44.0,
        "view_count": 12,
    },
    {
        "video_id": "q1w2",
        "question": "After the cut, what is on the table?",
        "question_wo_referring_query": "What is on the table?",
        "candidates": ["bread", "a lamp"],
        "correct_choice": 0,
        "position": [400],
        "topic_category": "LC-Lifestyle-Cooking-Recipes",
        "question_category": "T2O",
        "level": "L2-Relation",
        "id": "q1w2_1",
        "video_path": "q1w2.mp4",
        "subtitle_path": "q1w2_en.json",
        "duration_group": 60,
        "starting_timestamp_for_subtitles": 0,
        "duration": 44.0,
        "view_count": 12,
    },
]

OWN = {"video_id": "a.mp4", "question": "Which colour?", "answer": "red"}


def without(row, *keys):
    return {key: value for key, value in row.items() if key not in keys}


CASES = {
    "video-mme": (VIDEO_MME, ["aB-3_x", "zz"], ["C", "A"], ["001-1", "301-2"]),
    "mvbench": (MVBENCH, ["X1Y2.mp4", "rooms/7.webm"], ["B", "C"], ["sample:1", "sample:2"]),
    "mlvu": (MLVU, ["needle_1.mp4", "ego_2.mp4"], ["C", "A"], ["sample:1", "sample:2"]),
    "longvideobench": (LONGVIDEOBENCH, ["q1w2.mp4"] * 2, ["E", "A"], ["q1w2_0", "q1w2_1"]),
}


def as_list(folder, rows):
    path = folder / "sample.json"
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["list", "lines", "parquet"])
@pytest.mark.parametrize("layout", CASES)
def test_a_benchmarks_rows_are_read_from_every_kind_of_file(tmp_path, layout, kind):
    rows, videos, answers, ids = CASES[layout]
    path = tmp_path / f"sample.{'parquet' if kind == 'parquet' else 'json'}"
    if kind == "list":
        path = as_list(tmp_path, rows)
    elif kind == "lines":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    for given in ("auto", layout):
        questions = read_questions([path], layout=given)
        assert [each.video_id for each in questions] == videos
        assert [each.answer for each in questions] == answers
        assert [each.question_id for each in questions] == ids


def test_what_a_benchmark_breaks_down_by_is_a_column(tmp_path):
    columns = {
        name: read_questions([as_list(tmp_path, rows)])[0].columns
        for name, (rows, *_) in CASES.items()
    }
    assert columns["video-mme"]["task_type"] == "Counting Problem"
    assert columns["video-mme"]["duration"] == "short"
    assert columns["mvbench"] == {"start": 2.5, "end": 9.0, "task": "sample"}
    assert columns["mlvu"] == {"duration": 480.5, "question_type": "findNeedle"}
    assert columns["longvideobench"]["question_category"] == "E2O"
    assert columns["longvideobench"]["duration_group"] == 60
    assert columns["longvideobench"]["position"] == "[120, 300]"


def test_video_mme_options_lose_their_letters(tmp_path):
    question = read_questions([as_list(tmp_path, VIDEO_MME)])[0]
    assert question.options == ("One.", "Two.", "Three.", "Four.")


def test_an_option_that_looks_like_a_letter_is_text_where_answers_are_text(tmp_path):
    question = read_questions([as_list(tmp_path, MVBENCH)])[1]
    assert question.option(question.answer) == "B"


def test_video_mme_with_a_list_of_questions_for_each_video_is_read(tmp_path):
    of_video = {"video_id": "001", "duration": "short", "domain": "Knowledge"}
    asked = [
        {"question_id": f"001-{n}", "question": "Which?", "options": ["A. x", "B. y"], "answer": a}
        for n, a in ((1, "A"), (2, "B"))
    ]
    questions = read_questions([as_list(tmp_path, [{**of_video, "questions": asked}])])
    assert [(each.video_id, each.answer) for each in questions] == [("001", "A"), ("001", "B")]
    assert questions[1].columns["domain"] == "Knowledge"


@pytest.mark.parametrize(
    ("named", "video_id"),
    [
        ({"videoID": "aB-3_x", "url": "https://example.com/watch?v=other"}, "aB-3_x"),
        ({"url": "https://example.com/watch?v=aB-3_x&t=3"}, "aB-3_x"),
        ({"url": "https://example.com/watch?t=3&v=aB-3_x"}, "aB-3_x"),
        ({"url": "https://youtu.be/aB-3_x?t=3"}, "aB-3_x"),
        ({"url": "https://example.com/shorts/aB-3_x"}, "aB-3_x"),
        ({"url": "https://example.com/"}, "001"),
        ({"url": None}, "001"),
    ],
)
def test_a_video_of_video_mme_is_the_one_its_file_is_named_after(tmp_path, named, video_id):
    asked = {"question_id": "1", "question": "Which?", "options": ["A. x", "B. y"], "answer": "A"}
    rows = [{"video_id": "001", **named, "questions": [asked]}]
    [question] = read_questions([as_list(tmp_path, rows)])
    assert question.video_id == video_id


def test_only_mvbenchs_start_and_end_are_a_part_of_the_video(tmp_path):
    read = read_questions([as_list(tmp_path, MVBENCH)])
    assert [each.is_about_part for each in read] == [True, False]
    [other] = read_questions([as_list(tmp_path, [{**MLVU[0], "start": 2.5}])])
    assert not other.is_about_part


def test_an_option_that_is_not_available_keeps_its_place_unless_it_ends_the_list(tmp_path):
    row = {k: v for k, v in LONGVIDEOBENCH[0].items() if k != "candidates"}
    options = dict(zip([f"option{n}" for n in range(5)], ["a", "N/A", "b", "c", "d"], strict=True))
    [whole] = read_questions([as_list(tmp_path, [{**row, **options, "correct_choice": 2}])])
    assert (whole.option(whole.answer), len(whole.options)) == ("b", 5)
    ends = {**options, "option3": "N/A", "option4": None, "correct_choice": 2}
    [cut] = read_questions([as_list(tmp_path, [{**row, **ends}])])
    assert (cut.option(cut.answer), cut.options) == ("b", ("a", "N/A", "b"))


def test_longvideobench_with_a_column_for_each_option_is_read(tmp_path):
    rows = []
    for row in LONGVIDEOBENCH:
        options = [*row["candidates"], *["N/A"] * (5 - len(row["candidates"]))]
        columns = {f"option{number}": text for number, text in enumerate(options)}
        rows.append({**{k: v for k, v in row.items() if k != "candidates"}, **columns})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "validation.parquet")
    first, second = read_questions([tmp_path / "validation.parquet"])
    assert (first.option(first.answer), second.options) == ("nobody", ("bread", "a lamp"))
    assert "option4" not in second.columns


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{**VIDEO_MME[0], "answer": "E"}], "expected the letter of an option"),
        ([{**MVBENCH[0], "answer": "B"}], "expected the text of an option"),
        ([{**LONGVIDEOBENCH[0], "correct_choice": 5}], "the number of an option, from 0"),
        ([{**LONGVIDEOBENCH[0], "correct_choice": True}], "is True and is none"),
        (
            [LONGVIDEOBENCH[0], without(LONGVIDEOBENCH[1], "correct_choice")],
            "'correct_choice' is mi",
        ),
        ([without(MLVU[0], "candidates")], "free text cannot be scored"),
        ([{"video_id": "1", "questions": [3]}], "question 1: expected a JSON object"),
        ([{"clip": "x", "query": "y"}], "no layout has the keys clip, query"),
        ([{**VIDEO_MME[0], **MVBENCH[0]}], "video-mme and mvbench has"),
    ],
    ids=str,
)
def test_rows_that_do_not_keep_to_a_layout_are_refused(tmp_path, rows, said):
    with pytest.raises(ConfigError, match=said):
        read_questions([as_list(tmp_path, rows)])


@pytest.mark.parametrize(
    ("layout", "rows", "missing", "theirs"),
    [
        ("mlvu", [OWN], "candidates", "tokenreel"),
        ("video-mme", MLVU, "options", "mlvu"),
        ("longvideobench", VIDEO_MME, "candidates", "video-mme"),
        ("mvbench", VIDEO_MME, "candidates", "video-mme"),
        ("tokenreel", LONGVIDEOBENCH, "answer", "longvideobench"),
    ],
)
def test_a_wrong_layout_is_told_with_the_missing_key_and_the_right_one(
    tmp_path, layout, rows, missing, theirs
):
    with pytest.raises(ConfigError) as caught:
        read_questions([as_list(tmp_path, rows)], layout=layout)
    told = str(caught.value)
    assert f"sample.json, object 1: {missing!r} is missing; expected " in told
    assert told.endswith(
        f"; its keys are those of {theirs} and it is read as {layout}: give --layout {theirs}, "
        "or each layout a file of its own"
    )
    assert "None" not in told
    assert "free text" not in told


@pytest.mark.parametrize(
    ("rows", "missing", "theirs"),
    [
        ([OWN, MVBENCH[0]], "video_id", "mvbench"),
        ([MVBENCH[0], OWN], "candidates", "tokenreel"),
        ([VIDEO_MME[0], LONGVIDEOBENCH[0]], "options", "longvideobench"),
    ],
    ids=["mvbench in our own", "our own in mvbench", "longvideobench in video-mme"],
)
def test_a_row_of_another_layout_within_a_file_is_told_with_its_place(
    tmp_path, rows, missing, theirs
):
    with pytest.raises(ConfigError, match=f"object 2: {missing!r} is missing") as caught:
        read_questions([as_list(tmp_path, rows)])
    assert f"its keys are those of {theirs}" in str(caught.value)


def test_options_that_are_null_are_told_as_that(tmp_path):
    rows = [{**MVBENCH[0], "candidates": None}]
    with pytest.raises(ConfigError, match=r"'candidates' is None; expected a list of 2 to 26 opt"):
        read_questions([as_list(tmp_path, rows)])


@pytest.mark.parametrize("published", ["missing", "null", "columns", "parquet"])
def test_a_test_split_without_answers_is_refused_with_the_file_that_has_them(tmp_path, published):
    rows = [without(row, "correct_choice") for row in LONGVIDEOBENCH]
    if published == "null":
        rows = [{**row, "correct_choice": None} for row in rows]
    elif published in ("columns", "parquet"):
        columns = {f"option{number}": text for number, text in enumerate("vwxyz")}
        rows = [{**without(row, "candidates"), **columns} for row in rows]
    path = as_list(tmp_path, rows)
    if published == "parquet":
        path = tmp_path / "test.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    for layout in ("auto", "longvideobench"):
        with pytest.raises(ConfigError) as caught:
            read_questions([path], layout=layout)
        assert str(caught.value) == (
            f"{path} holds no answers ('correct_choice' is missing or null throughout, as in a "
            "test split) and cannot be scored; use the validation file (lvb_val.json)"
        )


@pytest.mark.parametrize(
    ("row", "found", "expected"),
    [
        (
            {**without(MVBENCH[0], "candidates"), "Candidates": ["a", "b"]},
            "Candidates",
            "candidates",
        ),
        ({**without(LONGVIDEOBENCH[0], "id"), "ID": "x"}, "ID", "id"),
        (
            {**without(LONGVIDEOBENCH[0], "correct_choice"), "correctChoice": 1},
            "correctChoice",
            "correct_choice",
        ),
    ],
    ids=["options", "question id", "answer"],
)
def test_a_misspelt_key_of_a_benchmark_is_told(tmp_path, row, found, expected):
    layout = "mvbench" if "video_id" not in row else "longvideobench"
    with pytest.raises(
        ConfigError, match=f"object 1: found the key {found!r}, expected {expected!r};"
    ):
        read_questions([as_list(tmp_path, [row])], layout=layout)


def test_an_unknown_layout_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match="expected auto, tokenreel, video-mme, mvbench, mlvu"):
        read_questions([as_list(tmp_path, MVBENCH)], layout="mmbench")
