import io
import json
import os
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus import find_videos, list_corpus
from pipeline.corpus_manifest import read_manifest
from schemas.errors import CorpusError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "corpus"
    for number, name in enumerate(
        ["b.mp4", "a.MKV", "sub/c.webm", "sub/deep/d.Mov", "notes.txt", ".hidden.mp4", ".git/e.mp4"]
    ):
        write(root / name, number + 1)
    return root


def write(path, size=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def ids(*sources):
    return [ref.video_id for ref in find_videos([str(source) for source in sources])]


def test_a_folder_gives_its_videos_at_any_depth_sorted_by_id(folder):
    refs = find_videos([str(folder)])
    assert [ref.video_id for ref in refs] == ["a.MKV", "b.mp4", "sub/c.webm", "sub/deep/d.Mov"]
    assert [ref.size_bytes for ref in refs] == [2, 1, 3, 4]
    status = (folder / "b.mp4").stat()
    assert refs[1].path == str(folder / "b.mp4")
    assert refs[1].modified_ns == status.st_mtime_ns
    assert refs[1].extra == {}


def test_the_last_suffix_of_a_name_decides_whether_it_is_a_video(folder):
    for name in ("mp4", "clip.", "clip.mp4.txt", "clip.xmp4", "clip.mp4~", "a.b.Ts", "x.MTS"):
        write(folder / "sub" / name)
    assert ids(folder / "sub") == ["a.b.Ts", "c.webm", "deep/d.Mov", "x.MTS"]


def test_paths_are_absolute_and_ids_do_not_depend_on_the_working_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    refs = find_videos(["."])
    assert [ref.video_id for ref in refs] == ids(folder)
    assert refs[1].path == str(folder / "b.mp4")
    assert ids("sub/../sub") == ["c.webm", "deep/d.Mov"]


def test_a_single_file_may_have_any_suffix_and_is_named_by_its_name(folder):
    odd = write(folder / "clip.bin")
    assert ids(odd) == ["clip.bin"]
    assert ids(odd.as_uri()) == ["clip.bin"]


def test_a_hidden_folder_is_searched_when_it_is_the_source(folder):
    assert ids(folder / ".git") == ["e.mp4"]


def test_symbolic_links_to_files_are_followed_under_their_own_name(folder, tmp_path):
    target = write(tmp_path / "elsewhere" / "real.bin", 7)
    (folder / "link.mp4").symlink_to(target)
    ref = next(ref for ref in find_videos([str(folder)]) if ref.video_id == "link.mp4")
    assert ref.size_bytes == 7
    assert ref.path == str(folder / "link.mp4")


def test_a_dangling_link_stays_as_a_video_without_a_file(folder):
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "self.mp4").symlink_to(folder / "self.mp4")
    sizes = {ref.video_id: ref.size_bytes for ref in find_videos([str(folder)])}
    assert sizes["gone.mp4"] == sizes["self.mp4"] == -1


def test_links_to_folders_are_followed_once_and_loops_end(folder, tmp_path):
    write(tmp_path / "more" / "x.mp4")
    (folder / "aa").symlink_to(folder)
    (folder / "sub" / "up").symlink_to(tmp_path)
    (folder / "more").symlink_to(tmp_path / "more")
    assert ids(folder) == ["a.MKV", "b.mp4", "more/x.mp4", "sub/c.webm", "sub/deep/d.Mov"]


def test_a_named_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe.mp4")
    sizes = {ref.video_id: ref.size_bytes for ref in find_videos([str(folder)])}
    assert sizes["pipe.mp4"] == -1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", ["b.mp4"]),
        ("*", ["a.MKV", "b.mp4"]),
        ("**", ["a.MKV", "b.mp4", "sub/c.webm", "sub/deep/d.Mov"]),
        ("**/*.webm", ["sub/c.webm"]),
        ("**/deep/*", ["sub/deep/d.Mov"]),
        ("sub/*.webm", ["c.webm"]),
        ("sub/**/*.Mov", ["deep/d.Mov"]),
        ("s?b/[abc].*", ["sub/c.webm"]),
        ("*.txt", ["notes.txt"]),
    ],
)
def test_a_pattern_names_videos_from_the_folder_before_its_first_wildcard(
    folder, pattern, expected
):
    assert ids(folder / pattern) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_taken_literally(folder):
    write(folder / "clip[1].mp4")
    write(folder / "clip1.mp4")
    assert ids(folder / "clip[1].mp4") == ["clip[1].mp4"]


def test_a_pattern_that_matches_nothing_is_an_error(folder):
    with pytest.raises(CorpusError, match="names no video"):
        ids(folder / "*.avi")
    with pytest.raises(CorpusError, match="has no 'missing'"):
        ids(folder / "missing" / "*.mp4")


def test_a_csv_manifest_names_videos_and_carries_typed_columns(folder):
    manifest = write_lines(
        folder / "m.csv",
        "video_id,uri,label,count,weight,good,code,empty",
        'one,b.mp4,"x, y",1,0.5,true,007,',
        f"two,{folder / 'sub/c.webm'},,2,1,false,8,",
    )
    one, two = find_videos([manifest])
    assert (one.video_id, one.path, one.size_bytes) == ("one", str(folder / "b.mp4"), 1)
    assert one.extra == {
        "label": "x, y",
        "count": 1,
        "weight": 0.5,
        "good": True,
        "code": "007",
        "empty": None,
    }
    assert two.extra["label"] is None
    assert two.extra["weight"] == 1.0
    assert [type(two.extra[name]) for name in ("count", "weight", "good")] == [int, float, bool]


def test_numbers_too_long_for_their_type_stay_text(folder):
    manifest = write_lines(
        folder / "m.csv", "video_id,uri,serial", "one,b.mp4,12345678901234567890"
    )
    assert find_videos([manifest])[0].extra == {"serial": "12345678901234567890"}


def test_jsonl_and_parquet_manifests_say_the_same_as_csv(folder):
    rows = [
        {"video_id": "one", "uri": "b.mp4", "label": "x", "n": 1},
        {"video_id": "two", "uri": (folder / "sub/c.webm").as_uri(), "label": None, "n": 2},
    ]
    jsonl = write_lines(folder / "m.jsonl", *(json.dumps(row) for row in rows), "")
    pq.write_table(pa.Table.from_pylist(rows), folder / "m.parquet")
    csv = write_lines(
        folder / "m.CSV", "video_id,path,label,n", "one,b.mp4,x,1", f"two,{rows[1]['uri']},,2"
    )
    assert find_videos([jsonl]) == find_videos([str(folder / "m.parquet")])
    assert find_videos([jsonl]) == find_videos([csv])


def test_a_row_without_its_file_stays_to_be_recorded_as_failed(folder):
    manifest = write_lines(folder / "m.csv", "video_id,uri", "one,gone.mp4", "two,b.mp4")
    one, two = find_videos([manifest])
    assert (one.size_bytes, one.modified_ns) == (-1, -1)
    assert one.path == str(folder / "gone.mp4")
    assert two.size_bytes == 1


@pytest.mark.parametrize("uri", ["./b.mp4", "sub/../b.mp4", "sub//..//b.mp4", "../corpus/b.mp4"])
def test_a_path_in_a_manifest_is_relative_to_it_and_made_plain(folder, uri):
    manifest = write_lines(folder / "m.csv", "video_id,uri", f"one,{uri}")
    assert find_videos([manifest])[0].path == str(folder / "b.mp4")


def test_a_uri_with_escapes_names_the_file_and_a_plain_path_is_not_unescaped(folder):
    write(folder / "a b%20c.mp4", 9)
    uri = (folder / "a b%20c.mp4").as_uri()
    manifest = write_lines(folder / "m.csv", "video_id,uri", f"one,{uri}", "two,a b%20c.mp4")
    assert [ref.size_bytes for ref in find_videos([manifest])] == [9, 9]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("m.csv", [], "is empty"),
        ("m.csv", ["video_id,uri"], "holds no row"),
        ("m.csv", ["id,uri", "a,b.mp4"], "line 1: found the columns id, uri; expected video_id"),
        ("m.csv", ["video_id,uri,path", "a,b,c"], "one of uri or path"),
        ("m.csv", ["video_id,uri,x,x", "a,b,c,d"], "line 1: column names repeat"),
        ("m.csv", ["video_id,uri,x,X", "a,b,c,d"], "line 1: column 'X' is already taken by 'x'"),
        ("m.csv", ["video_id,uri,Status", "a,b,c"], "'Status' is already taken by 'status'"),
        ("m.csv", ["video_id,uri,", "a,b,c"], "line 1: '' is not a column name"),
        ("m.csv", ["video_id,uri", "a,b.mp4", "", "c"], "line 4: found 1 values, expected 2"),
        ("m.csv", ["video_id,uri", ",b.mp4"], "line 2: video_id is ''"),
        ("m.csv", ["video_id,uri", "a, "], "line 2: uri is ''"),
        ("m.csv", ["video_id;uri;x", "a;b.mp4;1"], "line 1: the columns are separated by ';'"),
        ("m.csv", ["video_id\turi", "a\tb.mp4"], "line 1: the columns are separated by '.t'"),
        ("m.csv", ["video_id,uri", 'a,"b'], "line 2: not valid CSV"),
        ("m.csv", ["video_id,uri", "a,hdfs://node/b.mp4"], r"line 2: .* is remote \(hdfs://\)"),
        ("m.csv", ["video_id,uri", "a,file://host/b.mp4"], "line 2: .* is not of the form"),
        ("m.jsonl", ['{"video_id": "a", "uri": "b"}', "{"], "line 2: not valid JSON"),
        ("m.jsonl", ["[1]"], "line 1: found '.1.', expected one JSON object"),
        ("m.jsonl", ['{"video_id": "a"}'], "line 1: found the columns video_id; expected"),
        ("m.jsonl", ['{"video_id": 7, "uri": "b"}'], "line 1: video_id is 7, expected text"),
        ("m.jsonl", ['{"video_id": "a", "uri": "b", "x": [1, "a"]}'], "column 'x' are not of one"),
        ("m.jsonl", ['{"video_id": "a", "uri": "b", "x": 9223372036854775808}'], "64-bit"),
        ("m.jsonl", ['{"video_id": "a", "uri": "b\\u0000"}'], "is not a path"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_file_and_line(tmp_path, name, lines, message):
    manifest = write_lines(tmp_path / name, *lines)
    with pytest.raises(CorpusError, match=message) as caught:
        find_videos([manifest])
    assert str(tmp_path) in str(caught.value)


def test_a_manifest_that_is_not_utf8_names_the_line(tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_bytes(b"video_id,uri\na,b\n\xff,c\n")
    with pytest.raises(CorpusError, match="line 3: not valid UTF-8"):
        ids(manifest)


def test_a_line_of_jsonl_that_is_not_utf8_is_named(tmp_path):
    manifest = tmp_path / "m.jsonl"
    row = b'{"video_id": "a", "uri": "b"}\n'
    manifest.write_bytes(row + b"\n" + row.replace(b"b", b"\xff"))
    with pytest.raises(CorpusError, match="line 3: not valid UTF-8"):
        ids(manifest)


def test_a_manifest_may_begin_with_a_byte_order_mark(folder):
    manifest = folder / "m.csv"
    manifest.write_bytes(b"\xef\xbb\xbfvideo_id,uri\r\none,b.mp4\r\n")
    assert ids(manifest) == ["one"]
    manifest = folder / "m.jsonl"
    manifest.write_bytes(b'\xef\xbb\xbf{"video_id": "one", "uri": "b.mp4"}\r\n')
    assert ids(manifest) == ["one"]


def test_rows_of_a_long_parquet_manifest_are_numbered_to_the_last(tmp_path):
    count = 70_000
    names = [str(number) for number in range(count)]
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"video_id": [*names[1:], ""], "uri": names}), path)
    rows = read_manifest(path, str(path))
    assert next(rows).where == f"{path}, row 1"
    with pytest.raises(CorpusError, match=f"row {count}: video_id is ''"):
        list(rows)


def test_a_parquet_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "m.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(CorpusError, match="not a valid Parquet file"):
        ids(path)


def test_a_column_of_two_types_or_two_spellings_is_refused(folder):
    row = {"video_id": "one", "uri": "b.mp4"}
    for extra, message in (
        ({"x": "text"}, "column 'x' holds values of two types: 1 for 'one' and 'text' for 'two'"),
        ({"X": 2}, "columns 'x' and 'X'"),
    ):
        lines = [row | {"x": 1}, row | {"video_id": "two"} | extra]
        manifest = write_lines(folder / "m.jsonl", *(json.dumps(line) for line in lines))
        with pytest.raises(CorpusError, match=message):
            find_videos([manifest])


def test_whole_and_decimal_numbers_may_share_a_column(folder):
    row = {"video_id": "one", "uri": "b.mp4"}
    lines = [row | {"x": 1}, row | {"video_id": "two", "x": 2.5}, row | {"video_id": "three"}]
    manifest = write_lines(folder / "m.jsonl", *(json.dumps(line) for line in lines))
    assert [dict(ref.extra) for ref in find_videos([manifest])] == [{"x": 1}, {"x": 2.5}, {}]


def test_one_id_for_two_files_names_both_and_the_cure(tmp_path):
    first, second = write(tmp_path / "x" / "a.mp4"), write(tmp_path / "y" / "a.mp4")
    with pytest.raises(CorpusError, match="manifest with the columns video_id and uri") as caught:
        ids(tmp_path / "x", tmp_path / "y")
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_the_same_file_named_twice_counts_once_under_its_first_name(folder, tmp_path):
    assert ids(folder / "sub/c.webm", folder) == ["c.webm", "a.MKV", "b.mp4", "sub/deep/d.Mov"]
    assert ids(folder, folder / "sub") == ids(folder)
    (tmp_path / "again").symlink_to(folder)
    assert ids(folder, tmp_path / "again") == ids(folder)


def test_a_manifest_row_names_its_file_wherever_the_manifest_stands(folder):
    manifest = write_lines(folder / "m.csv", "video_id,uri", "one,b.mp4", "also,b.mp4")
    assert ids(folder, manifest) == ["a.MKV", "sub/c.webm", "sub/deep/d.Mov", "one", "also"]


def test_one_row_twice_counts_once_and_two_rows_that_differ_are_refused(folder):
    manifest = write_lines(folder / "m.csv", "video_id,uri,n", "one,b.mp4,1", "one,b.mp4,1")
    assert ids(manifest) == ["one"]
    manifest = write_lines(folder / "m.csv", "video_id,uri,n", "one,b.mp4,1", "one,b.mp4,2")
    with pytest.raises(CorpusError, match="named twice with different columns"):
        ids(manifest)


def test_a_source_that_does_not_exist_suggests_the_nearest_name(folder):
    with pytest.raises(CorpusError, match=f"did you mean '{folder}'"):
        ids(folder.parent / "corups" / "sub")
    with pytest.raises(CorpusError, match=f"{folder} has no 'zzz'; check the path"):
        ids(folder / "zzz" / "deeper")


def test_no_source_a_remote_source_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="no corpus given"):
        find_videos([])
    with pytest.raises(CorpusError, match="only s3:// and gs:// are read"):
        find_videos(["hdfs://node/videos"])
    with pytest.raises(CorpusError, match=r"names no video; .*\.mkv \.mov \.mp4"):
        ids(tmp_path)
    with pytest.raises(CorpusError, match="is not a path"):
        find_videos([""])


@pytest.mark.parametrize(
    ("name", "video_id"),
    [
        ("a\nb.mp4", r"a\nb.mp4"),
        ("a\r\nb.mp4", r"a\r\nb.mp4"),
        ("a\tb.mp4", r"a\tb.mp4"),
        ("a\x1b[31mb.mp4", r"a\x1b[31mb.mp4"),
        ("a\x7fb.mp4", r"a\x7fb.mp4"),
        ("a\x85b.mp4", r"a\x85b.mp4"),
        ("a\u2028b.mp4", r"a\u2028b.mp4"),
        (os.fsdecode(b"a\xffb.mp4"), r"a\udcffb.mp4"),
    ],
)
def test_a_name_that_cannot_be_printed_has_an_id_with_escapes_and_stops_nobody(
    tmp_path, name, video_id
):
    write(tmp_path / "in" / name / name, 7)
    write(tmp_path / "in" / "good.mp4")
    refs = {ref.video_id: ref for ref in find_videos([str(tmp_path / "in")])}
    assert set(refs) == {f"{video_id}/{video_id}", "good.mp4"}
    assert refs[f"{video_id}/{video_id}"].size_bytes == 7
    assert ids(tmp_path / "in" / name / name) == [video_id]
    assert ids(tmp_path / "in" / "**" / "*.mp4") == sorted(refs)


def test_a_manifest_may_name_what_cannot_be_printed(folder):
    write(folder / "two\nlines.mp4", 7)
    rows = [
        {"video_id": "a\u0007", "uri": "two\nlines.mp4"},
        {"video_id": "b\ud800", "uri": "x\ud800.mp4"},
        {"video_id": "c", "uri": "b.mp4"},
    ]
    manifest = write_lines(folder / "m.jsonl", *map(json.dumps, rows))
    found = [(ref.video_id, ref.size_bytes) for ref in find_videos([manifest])]
    assert found == [(r"a\x07", 7), (r"b\ud800", -1), ("c", 1)]
    (folder / "m.csv").write_text('video_id,uri\n"one\ntwo","two\nlines.mp4"\n')
    assert ids(folder / "m.csv") == [r"one\ntwo"]


@pytest.mark.parametrize(
    "name", ["m.json", "m.tsv", "m.txt", "m.TXT", "m.xlsx", "m.yaml", "m.ndjson", "m.m3u"]
)
def test_lists_in_other_forms_are_refused_with_the_forms_that_are_read(folder, name):
    write(folder / name)
    with pytest.raises(CorpusError, match=r"manifests are \.csv, \.jsonl and \.parquet") as caught:
        ids(folder / name)
    assert f"'@{folder / name}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_file_lists_paths_relative_to_its_folder(folder, monkeypatch):
    monkeypatch.chdir("/")
    write(folder / " two words.mp4 ", 9)
    lines = ["b.mp4", "", "./sub/c.webm\r", "   ", str(folder / "sub/deep/d.Mov"), "gone.mp4"]
    lines += [(folder / "a.MKV").as_uri(), "#odd.mp4", " two words.mp4 ", "b.mp4"]
    write_lines(folder / "list.txt", *lines)
    refs = find_videos([f"@{folder / 'list.txt'}"])
    assert [(ref.video_id, ref.size_bytes) for ref in refs] == [
        ("b.mp4", 1),
        ("sub/c.webm", 3),
        ("sub/deep/d.Mov", 4),
        ("gone.mp4", -1),
        ("a.MKV", 2),
        ("#odd.mp4", -1),
        (" two words.mp4 ", 9),
    ]
    assert refs[1].path == str(folder / "sub/c.webm")


def test_standard_input_lists_paths_relative_to_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    outside = write(folder.parent / "other" / "b.mp4", 5)
    text = os.fsencode(f"b.mp4\n../other/b.mp4\n{folder}/sub/c.webm\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + text)))
    found = {ref.video_id: ref.size_bytes for ref in find_videos(["-"])}
    assert found == {"b.mp4": 1, str(outside).lstrip("/"): 5, "sub/c.webm": 3}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["b.mp4", "sub"], "line 2: 'sub' is no file of a video"),
        (["", "m.csv"], "line 2: 'm.csv' is no file of a video"),
        (["hdfs://node/b.mp4"], r"line 1: .* is remote \(hdfs://\)"),
        (["b.mp4", "file://host/b.mp4"], "line 2: .* is not of the form"),
        (["b.mp4\0a.mp4\0"], "line 1: a NUL byte"),
        (["", "  "], "holds no row"),
    ],
)
def test_a_bad_line_of_a_list_is_refused_with_its_number(folder, lines, said):
    write_lines(folder / "list.txt", *lines)
    with pytest.raises(CorpusError, match=said) as caught:
        find_videos([f"@{folder / 'list.txt'}"])
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_there_is_named_and_a_file_with_an_at_sign_is_a_file(
    folder, monkeypatch
):
    with pytest.raises(CorpusError, match=r"list of paths '/none\.txt' cannot be read"):
        find_videos(["@/none.txt"])
    monkeypatch.chdir(folder)
    write(folder / "@home.mp4")
    assert ids("@home.mp4") == ["@home.mp4"]


def test_files_of_a_folder_that_are_no_videos_are_counted_by_suffix(folder):
    for name in (
        "x.gif",
        "sub/y.GIF",
        "sub/README",
        "z.jpg",
        ".hidden.gif",
        ".git/w.gif",
        "a.tar.gz",
    ):
        write(folder / name)
    write(folder / "other" / "only.gif")
    counts = {".gif": 3, ".txt": 1, "": 1, ".jpg": 1, ".gz": 1}
    assert list_corpus([str(folder)]).passed_over == counts
    assert next(iter(list_corpus([str(folder)]).passed_over)) == ".gif"
    assert list_corpus([str(folder / "*.mp4")]).passed_over == {}
    assert list_corpus([str(folder / "sub" / "*")]).passed_over == {".gif": 1, "": 1}
    assert list_corpus([str(folder / "x.gif")]).passed_over == {}
    with pytest.raises(CorpusError, match=r"It holds 1 \.gif"):
        list_corpus([str(folder / "other")])


def test_names_in_any_script_are_kept(tmp_path):
    names = ["\u89c6\u9891 %d.mp4", "caf\u00e9\u00a0\u3000.mp4", "\U0001f468\u200d\U0001f469.mp4"]
    for name in names:
        write(tmp_path / name)
    assert ids(tmp_path) == sorted(names)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_cannot_be_listed_is_an_error(folder):
    (folder / "sub").chmod(0)
    try:
        with pytest.raises(CorpusError, match="cannot list folder"):
            ids(folder)
    finally:
        (folder / "sub").chmod(0o755)


@pytest.mark.slow
def test_twenty_thousand_videos_are_listed_in_seconds(tmp_path):
    for group in range(20):
        (tmp_path / f"{group:02d}").mkdir()
        for number in range(1000):
            (tmp_path / f"{group:02d}" / f"{number:04d}.mp4").touch()
    started = time.process_time()
    assert len(find_videos([str(tmp_path)])) == 20_000
    assert time.process_time() - started < 10


def test_contents_are_not_read_and_neither_torch_nor_av_is_imported(folder):
    code = (
        "import sys; from pipeline.corpus import find_videos; find_videos(sys.argv[1:]);"
        "assert not {'torch', 'av', 'decord', 'duckdb'} & set(sys.modules)"
    )
    (folder / "b.mp4").chmod(0)
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_two_names_with_one_id_are_refused_in_one_line(tmp_path):
    (tmp_path / "a\nb.mp4").touch()
    (tmp_path / "a\\nb.mp4").touch()
    with pytest.raises(CorpusError, match="would stand for two files") as caught:
        find_videos([str(tmp_path)])
    assert "\n" not in str(caught.value)
