"""
Optuna with pruning
===================

A callback of scikit-learn's protocol tells an Optuna trial of every epoch, and stops
the training where the trial is behind the others.
"""

import optuna
from sklearn.model_selection import train_test_split

from skvae import VAEEstimator
from skvae.datasets import load_digits


class Pruning:
    """Report the validation loss of each epoch; stop where the pruner says so.

    Returning True from ``on_fit_task_end`` ends the training; the trial is then told
    by ``raise_if_pruned``, since a callback may not fail a fit.
    """

    def __init__(self, trial):
        self.trial = trial
        self.pruned = False

    def setup(self, estimator, context): ...

    def teardown(self, estimator, context): ...

    def on_fit_task_begin(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name != "epoch" or fitted_estimator is None:
            return False
        last = fitted_estimator.history_.iloc[-1]
        self.trial.report(-last.validation_loss, step=int(last.epoch))
        self.pruned = self.trial.should_prune()
        return self.pruned

    def raise_if_pruned(self):
        if self.pruned:
            raise optuna.TrialPruned


def study(n_trials=20, epochs=30, rows=None):
    train, test = train_test_split(load_digits().data[:rows], random_state=0)

    def objective(trial):
        pruning = Pruning(trial)
        vae = VAEEstimator(
            latent_dim=trial.suggest_int("latent_dim", 2, 32, log=True),
            hidden_dim=trial.suggest_int("hidden_dim", 16, 256, log=True),
            learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            batch_size=trial.suggest_categorical("batch_size", [50, 100, 200]),
            epochs=epochs,
            random_state=0,
        ).set_callbacks(pruning)
        vae.fit(train, X_val=test)
        pruning.raise_if_pruned()
        return vae.score(test)

    one = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=3),
    )
    one.optimize(objective, n_trials=n_trials)
    return one


if __name__ == "__main__":
    found = study()
    states = [trial.state.name for trial in found.trials]
    print(found.best_params, found.best_value)
    print({state: states.count(state) for state in set(states)})
