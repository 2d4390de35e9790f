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
    """English-German sentences written by a grammar; nothing is downloaded."""

    VERSION = tfds.core.Version(grammar.VERSION)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name="de-en",
            description="Synthetic German-English sentence pairs.",
        )
    ]

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
            split: self._generate_examples(split) for split in grammar.SPLITS
        }

    def _generate_examples(
        self, split: str
    ) -> Iterator[tuple[int, dict[str, str]]]:
        for key, (english, german) in enumerate(grammar.generate(split)):
            yield key, {"en": english, "de": german}
