"""Tests of the data room (src/luthier/data); tests/data holds fixtures."""
