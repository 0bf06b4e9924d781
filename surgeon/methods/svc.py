"""Singular value calibration: a finished merge with what it counts several times taken back."""

from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.parameters import TaskVectors
from surgeon.space.spectral import NEGLIGIBLE, decompose, each_matrix


@merge_method(
    equivariant="both",
    models=(2, None),
    ranges={"alpha": "(0, 1]"},
    breaks={"model_order": "the first model is the merge that is calibrated, the others those it was made of"},
)
def svc(task_vectors: TaskVectors, alpha: float = 1.0, lambda_: float = 1.0) -> Tensor:
    """Rescale the singular values of a merge, the first model, where it answers more strongly than the models it is of.

    Formula: θ = θ₀ + λ Σⱼ (N σⱼ / Σᵢ max(α, sᵢⱼ)) uⱼvⱼᵀ, with the first task vector M = Σⱼ σⱼuⱼvⱼᵀ, those of the N
    others τᵢ, sᵢⱼ = ⟨uⱼᵀM, uⱼᵀτᵢ⟩ / ‖uⱼᵀτᵢ‖², α `alpha`.

    What several models have in common was added up several times. At `alpha` 1, the default, singular values only
    shrink; the paper takes 1/N after task arithmetic, TIES and DARE, which raises weak ones too. The first model may be
    a step of the recipe or a checkpoint from elsewhere. Rows are taken to be outputs. Vectors and other tensors that
    are no matrices: the merge as it is.

    Use it after task arithmetic, TIES, DARE or TSV-M where models overlap; orthogonal task vectors leave little to take
    back, and after Iso-C or Iso-CTS, where all singular values are equal, no direction u is defined.

    Paper: https://arxiv.org/abs/2602.05536
    """
    calibrated = each_matrix(
        task_vectors, lambda matrices: _calibrated(matrices, alpha), lambda tensors: tensors[0].clone()
    )
    return calibrated.mul_(lambda_)


def _calibrated(matrices: Tensor, alpha: float) -> Tensor:
    u, s, vh = decompose(matrices[0])
    answer = s.unsqueeze(1) * vh
    counted = s.new_zeros(s.shape)
    for matrix in matrices[1:]:
        own = u.T @ matrix.double()
        size = own.square().sum(1)
        heard = size > (NEGLIGIBLE * s[0]) ** 2
        counted += ((answer * own).sum(1) * heard / size.where(heard, 1.0)).clamp(min=alpha)
    return (u * (s * (len(matrices) - 1) / counted)) @ vh
