from .allocation import allocate as allocate
from .costs.budget import Budget as Budget
from .costs.counting import count_cost as count_cost
from .costs.latency import measure_latency as measure_latency
from .data.loading import load_data as load_data
from .data.model_batches import batches as batches
from .data.stated_preprocessing import set_preprocessing as set_preprocessing
from .errors import UserError as UserError
from .evaluation import evaluate as evaluate
from .exporting.export import export as export
from .importance.criteria import score as score
from .importance.scores import Scores as Scores
from .models import describe as describe
from .pipeline import Compressed as Compressed
from .pipeline import compress as compress
from .plan import PruningPlan as PruningPlan
from .recipe import Recipe as Recipe
from .recipe import load_recipe as load_recipe
from .recovery.recover import recover as recover
from .saving.checkpoint import load as load
from .saving.checkpoint import save as save
from .structure import ViTStructure as ViTStructure
from .surgery import prune as prune
from .training.settings import TrainingSettings as TrainingSettings
from .training.train import train as train

__version__: str
