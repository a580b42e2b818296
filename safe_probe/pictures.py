"""Pictures for a model that sees to look at while a clip plays."""

from safe.training.experiment import Experiment
from safe.training.retention_images import RetentionImages
from safe.training.retention_texts import TextBatch


def pictures_of(experiment: Experiment) -> TextBatch | None:
    """Two drawn pictures with a question, its answer and a training clip each.

    None for a backbone that is shown no pictures: ``sees`` is False for all but a LLaVA with its
    own vision tower.
    """
    model, seed = experiment.model, experiment.config.optim.seed
    if not model.sees:
        return None
    images = RetentionImages(model, experiment.tokens, experiment.train.embeddings, seed)
    return images.draw(0, RetentionImages.SIZE)
