"""The training core: an audio adapter trained onto a frozen vision-language model."""
