"""The same model in JAX: an epoch is one jitted scan. Arguments: epochs, batch size."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from mnist import images, report

EPOCHS, BATCH = int(sys.argv[1]), int(sys.argv[2])
D, H, L = 784, 400, 20
X = jnp.array(images())
N = len(X)
STEPS = N // BATCH
rng = np.random.default_rng(0)


def linear(n_in, n_out):
    bound = n_in**-0.5
    return {
        "w": jnp.array(rng.uniform(-bound, bound, (n_in, n_out)), jnp.float32),
        "b": jnp.array(rng.uniform(-bound, bound, n_out), jnp.float32),
    }


def apply(layer, x):
    return x @ layer["w"] + layer["b"]


def loss(params, x, noise):
    hidden = jax.nn.relu(apply(params["encoder"], x))
    mean, log_variance = jnp.split(apply(params["posterior"], hidden), 2, axis=-1)
    z = mean + jnp.exp(0.5 * log_variance) * noise
    logits = apply(params["output"], jax.nn.relu(apply(params["decoder"], z)))
    entropy = jax.nn.softplus(logits) - x * logits
    kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance)
    return entropy.sum(-1).mean() + kl.sum(-1).mean()


def step(carry, batch):
    params, first, second, t = carry
    rows, key = batch
    noise = jax.random.normal(key, (BATCH, L))
    value, gradient = jax.value_and_grad(loss)(params, X[rows], noise)
    t = t + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
    params = jax.tree.map(
        lambda p, m, v: (
            p - 1e-3 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
        ),
        params,
        first,
        second,
    )
    return (params, first, second, t), value


@jax.jit
def epoch(carry, key):
    order_key, noise_key = jax.random.split(key)
    rows = jax.random.permutation(order_key, N)[: STEPS * BATCH].reshape(STEPS, BATCH)
    carry, values = jax.lax.scan(
        step, carry, (rows, jax.random.split(noise_key, STEPS))
    )
    return carry, values.mean()


params = {
    "encoder": linear(D, H),
    "posterior": linear(H, 2 * L),
    "decoder": linear(L, H),
    "output": linear(H, D),
}
zeros = jax.tree.map(jnp.zeros_like, params)
carry = (params, zeros, zeros, 0.0)
seconds = []
for i in range(EPOCHS):
    started = time.perf_counter()
    carry, value = epoch(carry, jax.random.key(i))
    value = float(value)
    seconds.append(time.perf_counter() - started)
report(seconds, value)
