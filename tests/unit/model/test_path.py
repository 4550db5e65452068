import torch

from rfpp_core.model import path


def test_the_path_and_its_ends():
    x, z, t = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4), torch.rand(5)
    x_t, v = path.interpolate(x, z, t), path.velocity(x, z)
    torch.testing.assert_close(path.x_hat(x_t, v, t), x)
    torch.testing.assert_close(path.z_hat(x_t, v, t), z)
    torch.testing.assert_close(path.interpolate(x, z, torch.zeros(5)), x)
    torch.testing.assert_close(path.interpolate(x, z, torch.ones(5)), z)


def test_velocity_is_the_derivative_of_the_path():
    x, z, t = (torch.randn(3, 2, dtype=torch.float64) for _ in range(3))
    t = torch.rand(3, dtype=torch.float64, requires_grad=False)
    _, dx = torch.func.jvp(lambda u: path.interpolate(x, z, u), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(dx, path.velocity(x, z))


def test_sigma_and_time_are_inverse():
    sigma = torch.tensor([0.0, 0.002, 1.0, 80.0], dtype=torch.float64)
    t = path.t_of_sigma(sigma)
    torch.testing.assert_close(t / (1 - t), sigma)
    assert float(path.t_of_sigma(sigma[-1])) == 80 / 81
