"""What a training run is: one TOML file, read into frozen models. Every field is written to the checkpoint.

One default per setting stands here; a key that nobody reads is refused with a suggestion.
"""

from certkit.config.models import ARCHITECTURES as ARCHITECTURES
from certkit.config.models import Images as Images
from certkit.config.models import Language as Language
from certkit.config.models import LanguageBaselineConfig as LanguageBaselineConfig
from certkit.config.models import LanguageModelConfig as LanguageModelConfig
from certkit.config.models import ModelConfig as ModelConfig
from certkit.config.models import MultilayerConfig as MultilayerConfig
from certkit.config.models import VisionBaselineConfig as VisionBaselineConfig
from certkit.config.models import VisionTransformerConfig as VisionTransformerConfig
from certkit.config.reading import MAX_BYTES as MAX_BYTES
from certkit.config.reading import changed as changed
from certkit.config.reading import load_run as load_run
from certkit.config.reading import override as override
from certkit.config.reading import parse as parse
from certkit.config.reading import preset as preset
from certkit.config.reading import presets as presets
from certkit.config.reading import validate as validate
from certkit.config.run import Run as Run
from certkit.config.training import ComparisonConfig as ComparisonConfig
from certkit.config.training import Contender as Contender
from certkit.config.training import DataConfig as DataConfig
from certkit.config.training import TrainingConfig as TrainingConfig
