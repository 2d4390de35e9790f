"""`python -m keras_adafactor`: see `convert`."""

import sys

from keras_adafactor.convert import main

sys.exit(main())
