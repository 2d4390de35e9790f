"""A grammar that writes English sentences with their German translations.

Abstract syntax trees are composed once (`composer`) and read out twice
(`english`, `german`), so the German side is a function of the tree and, by
construction of the lexicon, of the English sentence.
"""
