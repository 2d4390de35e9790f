import json

from examples.translation.files import write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    write_atomically(path, json.dumps({"new": 1}))
    assert json.loads(path.read_text()) == {"new": 1}
    assert list(tmp_path.iterdir()) == [path]
