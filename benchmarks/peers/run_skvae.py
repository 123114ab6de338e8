"""The default model of skvae: arguments are epochs, batch size and precision."""

import sys

from mnist import images, report

from skvae import VAEEstimator

epochs, batch_size, precision = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
vae = VAEEstimator(
    epochs=epochs, batch_size=batch_size, precision=precision, random_state=0
).fit(images())
records = vae.fitted_.history
report([r.seconds for r in records], records[-1].loss)
