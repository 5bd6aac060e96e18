"""The files that certkit writes and reads back: certificate, campaign plan and audit. No torch here.

Every record is frozen, refuses unknown keys, NaN and infinity, carries ``format`` and ``kind`` at the top, and names
its subject by the sha256 of the checkpoint. Whatever differs between two identical runs (times, durations) stands in
``provenance`` alone; everything else is byte for byte the same on one machine with one thread count.
"""

from certkit.records.audit import Audit as Audit
from certkit.records.audit import Contradiction as Contradiction
from certkit.records.audit import CurvePoint as CurvePoint
from certkit.records.audit import LedgerRow as LedgerRow
from certkit.records.audit import Sample as Sample
from certkit.records.base import FORMAT as FORMAT
from certkit.records.base import MAX_NUMBER as MAX_NUMBER
from certkit.records.base import Arithmetic as Arithmetic
from certkit.records.base import AttackNorm as AttackNorm
from certkit.records.base import Count as Count
from certkit.records.base import Data as Data
from certkit.records.base import Environment as Environment
from certkit.records.base import Eps as Eps
from certkit.records.base import File as File
from certkit.records.base import Norm as Norm
from certkit.records.base import Provenance as Provenance
from certkit.records.base import Rate as Rate
from certkit.records.base import Record as Record
from certkit.records.base import Refutes as Refutes
from certkit.records.base import Role as Role
from certkit.records.base import Sha256 as Sha256
from certkit.records.base import Subject as Subject
from certkit.records.base import Threat as Threat
from certkit.records.base import Verdict as Verdict
from certkit.records.base import radii as radii
from certkit.records.base import rounded_up as rounded_up
from certkit.records.campaign import Adversary as Adversary
from certkit.records.campaign import AttackSpec as AttackSpec
from certkit.records.campaign import AttackSummary as AttackSummary
from certkit.records.campaign import Budget as Budget
from certkit.records.campaign import CampaignSummary as CampaignSummary
from certkit.records.campaign import Check as Check
from certkit.records.campaign import Guide as Guide
from certkit.records.campaign import Plan as Plan
from certkit.records.certificate import Ablation as Ablation
from certkit.records.certificate import Agreement as Agreement
from certkit.records.certificate import Attention as Attention
from certkit.records.certificate import Certificate as Certificate
from certkit.records.certificate import CertifiedAt as CertifiedAt
from certkit.records.certificate import Execution as Execution
from certkit.records.certificate import WithoutLocal as WithoutLocal
from certkit.records.pictures import Picture as Picture
from certkit.records.pictures import Pictures as Pictures
