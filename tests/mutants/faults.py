"""All mutants: what we know that our tests would notice."""

from tests.mutants import of_admission, of_changes, of_composition, of_decide, of_runtime, of_stores, of_versions
from tests.mutants.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *of_stores.FAULTS,
    *of_admission.FAULTS,
    *of_decide.FAULTS,
    *of_composition.FAULTS,
    *of_changes.FAULTS,
    *of_versions.FAULTS,
    *of_runtime.FAULTS,
)
