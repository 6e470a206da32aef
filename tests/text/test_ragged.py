"""How much goes through the model at once."""

from foreword.text.ragged import passes


def test_passes_keep_the_order_and_fit():
    sizes = [3, 4, 5, 20, 1, 1]
    found = list(passes(list(enumerate(sizes)), tokens=8))
    assert found == [[0, 1], [2], [3], [4, 5]]
    assert list(passes([], tokens=8)) == []
