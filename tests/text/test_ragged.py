"""How much goes through the model at once."""

from foreword.text.ragged import batch_by_tokens


def test_passes_keep_the_order_and_fit():
    sizes = [3, 4, 5, 20, 1, 1]
    found = list(batch_by_tokens(list(enumerate(sizes)), max_tokens=8))
    assert found == [[0, 1], [2], [3], [4, 5]]
    assert list(batch_by_tokens([], max_tokens=8)) == []
