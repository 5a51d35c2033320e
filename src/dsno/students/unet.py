from dsno.teachers.unet import *  # noqa
from dsno.teachers.unet import Head  # noqa
