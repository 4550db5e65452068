import pytest

from rfpp_core.evaluation import classifier, extractors
from tests.unit.evaluation.test_extractors import uint8


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16), (3, 32), (1, 28), (3, 5)])
def test_the_classifier_takes_any_size(channels, side):
    net = classifier.new_classifier(channels, 4, side, 0)
    images = uint8(2, channels, side)
    assert extractors.extract(net.of_uint8, images).shape == (2, classifier.DIM)
    assert net.deeper.__len__() == {5: 0, 8: 0, 16: 1, 28: 2, 32: 2}[side]
