"""The synthetic corpus as a TensorFlow dataset.

Importing this module registers `synthetic_translate/de-en`, whose elements
are those of `wmt14_translate/de-en`:

    from examples.translation.synthetic import builder
    builder.SyntheticTranslate(data_dir=directory).download_and_prepare()
    tfds.load("synthetic_translate/de-en", data_dir=directory)
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from examples.translation.synthetic import grammar


class SyntheticTranslate(tfds.core.GeneratorBasedBuilder):
    """English-German sentences written by a grammar; nothing is downloaded.

    Args:
        train_size: pairs in the training split, `grammar.SIZES["train"]` if
            None. A smaller split is a prefix of a larger one. Builders that
            differ in it need different data directories.
        **kwargs: of `tfds.core.GeneratorBasedBuilder`, such as `data_dir`.
    """

    VERSION = tfds.core.Version(grammar.VERSION)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name="de-en",
            description="Synthetic German-English sentence pairs.",
        )
    ]

    def __init__(self, *, train_size: int | None = None, **kwargs):
        self._sizes = dict(grammar.SIZES)
        if train_size is not None:
            self._sizes["train"] = train_size
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Sentences composed at random by a grammar of English and"
                " German. They are synthetic: scores on them are not"
                " comparable with scores on real text. Fingerprint"
                f" {grammar.fingerprint()}."
            ),
            features=tfds.features.Translation(languages=("de", "en")),
            supervised_keys=("de", "en"),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        del dl_manager  # Nothing to download.
        return {
            split: self._generate_examples(split, size)
            for split, size in self._sizes.items()
        }

    def _generate_examples(
        self, split: str, size: int
    ) -> Iterator[tuple[int, dict[str, str]]]:
        for key, (english, german) in enumerate(grammar.generate(split, size)):
            yield key, {"en": english, "de": german}
