from rfpp_core.training import ema


def test_ema_ramp():
    assert ema.decay_at(0, 0.999, True) == 0.1
    assert ema.decay_at(10**6, 0.999, True) == 0.999
    assert ema.decay_at(0, 0.999, False) == 0.999
