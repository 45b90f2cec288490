r"""The formula at the head of a name's page, in the notation of the page of mathematics.

Docstrings are read in terminals too, and have their formulas in letters; here they are typeset.
"""

from __future__ import annotations

# The posterior of f at new inputs; A differs.
_PROCESS = r" \\ &f(x_*)\sim\mathcal N\bigl(f_{w_*}(x_*),\ J_*A^{-1}J_*^\top\bigr)"
_LOSS = r"&w_* = \arg\min_w \sum_i \ell\bigl(y_i, f_w(x_i)\bigr) + \tfrac\delta2\lVert w\rVert^2"
_MIXTURE = r"p(y) = \frac1M\sum_{m=1}^M p_m(y)"
_WIDE = (
    r"K^0 = \sigma_b^2 + \sigma_w^2\,\frac{x\cdot x'}{d},\qquad"
    r" K^{l+1} = \sigma_b^2 + \sigma_w^2\operatorname{E}[\varphi(u)\varphi(v)]"
)
_STEP = (
    r"&S \leftarrow (1-\beta)S + \frac\beta M\sum_m %s \\"
    r" &\mu \leftarrow \mu - \alpha\,(S+\delta I)^{-1}"
    r"\Bigl(\frac1M\sum_m g_m + \delta\mu\Bigr)"
)
_AT_THE_MEAN = (
    r"&S \leftarrow (1-\beta)S + \beta\,%s \\"
    r" &\mu \leftarrow \mu - \alpha\,(S+\delta I)^{-1}(g + \delta\mu)"
)
_GGN = r"J_m^\top\Lambda_m J_m"
_DIAGONAL = r"\operatorname{diag}(J_m^\top\Lambda_m J_m)"

FORMULAS = {
    "DNN2GPRegressor": _LOSS + _PROCESS + r" \\ &A = \delta I + J^\top J/\sigma^2",
    "DNN2GPClassifier": _LOSS + _PROCESS
    + r" \\ &A = \delta I + \sum_i J_i^\top\bigl(\operatorname{diag}p_i - p_ip_i^\top\bigr)J_i",
    "MixtureRegressor": _MIXTURE,
    "MixtureClassifier": _MIXTURE,
    "NNGPClassifier": r"\mathbf K_*\,(\mathbf K + \sigma^2 I)^{-1}\,Y",
    "NNGPRegressor": r"K(X, X) = \Phi\Phi^\top + E,\qquad"
    r" 0\preceq E\preceq\operatorname{tr}(E)\,I",
    "NNGPFeatures": r"\Phi = K(X, Z)\,K(Z, Z)^{-1/2}",
    "NTKKernel": r"k(x, x') = J(x)\,J(x')^\top/\delta",
    "NTKFeatures": r"\phi(x) = J(x)^\top/\sqrt\delta,\qquad \phi(x)^\top\phi(x') = k(x, x')",
    "NNGPKernel": _WIDE,
    "InfiniteNTKKernel": r"\Theta^0 = K^0,\qquad \Theta^{l+1} = K^{l+1}"
    r" + \sigma_w^2\operatorname{E}[\varphi'(u)\varphi'(v)]\;\Theta^l",
    "ConvNetKernel": r"v^{l+1}_g = \sigma_b^2 + \frac{\sigma_w^2}{n}\sum_{h\in S(g)}"
    r"\operatorname{E}[\varphi(u_h)\varphi(v_h)]",
    "kernels.squared_rkhs_norm": r"\lVert f\rVert^2 = f^\top K(X, X)^{+} f",
    "inference.Laplace": r"A = \delta I + \sum_i J_i^\top\Lambda_iJ_i \quad\text{or}\quad"
    r" \delta I + \sum_i\nabla\ell_i\,\nabla\ell_i^\top",
    "inference.LinearizedVariational": r"\Sigma^{-1} = \delta I + \sum_i J_i^\top\,"
    r"\operatorname{E}_q[\Lambda_i]\,J_i,\qquad"
    r" \delta\mu + \sum_i J_i^\top\operatorname{E}_q[r_i] = 0",
    "inference.SWAG": r"\Sigma = \tfrac12\Bigl(\operatorname{diag}s^2 + \frac{DD^\top}{m-1}\Bigr)",
    "inference.Variational": r"\max_q\ \operatorname{E}_q\Bigl[\sum_i\log p(y_i\mid f_w(x_i))\Bigr]"
    r" - \operatorname{KL}(q\,\Vert\,p),\qquad q = \mathcal N(\mu, \Sigma)",
    "training.GaussNewtonLM": r"(\Phi^\top\Phi + \delta I + \mu I)\,\Delta"
    r" = -\nabla\operatorname{loss}(w)",
    "training.NewtonCG": r"\nabla^2\operatorname{loss}(w)\,\Delta = -\nabla\operatorname{loss}(w)",
    "linear_model.LinearModel": r"\Phi_i = L_i^\top J_i,\qquad t_i = \Phi_iw_* - u_i,\qquad"
    r" A = \delta I + \Phi^\top\Phi",
    "linear_model.IterationModel": r"\tilde y_{im} = J_{im}\mu_t - \Lambda_{im}^{-1}r_{im},\qquad"
    r" w\sim\mathcal N(m_t, V_t)",
    "posterior.WeightSpacePosterior": r"V_* = J_*A^{-1}J_*^\top,\qquad"
    r" A = \operatorname{diag}\delta + \Phi^\top\Phi",
    "posterior.FunctionSpacePosterior": r"V_* = \mathbf K_{**}"
    r" - \mathbf K_*\mathcal L\,B^{-1}\mathcal L^\top\mathbf K_*^\top,\qquad"
    r" B = I + \Phi D^{-1}\Phi^\top",
    "posterior.LowRank": r"\operatorname{std} \le \text{given} \le"
    r" \sqrt{1+\eta/\delta}\;\operatorname{std}",
    "posterior.LowRankPosterior": r"\underline v \le j^\top A^{-1}j \le \bar v \le"
    r" \Bigl(1+\frac\eta\delta\Bigr)\underline v",
    "posterior.KroneckerPosterior": r"\Phi_l^\top\Phi_l \approx Q_l\otimes R_l",
    "posterior.DiagonalPosterior": r"\Sigma = \operatorname{diag}(a)^{-1},\qquad"
    r" a = \operatorname{diag}(\Phi^\top\Phi) + \delta",
    "posterior.SWAGPosterior": r"\Sigma = \tfrac12\Bigl(\operatorname{diag}s^2"
    r" + \frac{DD^\top}{m-1}\Bigr)",
    "evidence.EvidenceSpectrum": r"E = -\operatorname{loss}(w_*)"
    r" - \tfrac12\sum_k\log\bigl(1+\lambda_k/\delta\bigr)",
    "evidence.GroupedEvidence": r"\frac{\partial E}{\partial\log\delta_g} ="
    r" \tfrac12\bigl(\gamma_g - \delta_g\lVert w_g\rVert^2\bigr)",
    "evidence.log_marginal_likelihood": r"E = -\operatorname{loss}(w_*) - \tfrac12\log|B|",
    "evidence.leave_one_out": r"t_i - \Phi_i\hat w_{-i} ="
    r" (I-H_{ii})^{-1}(t_i - \Phi_i\hat w),\qquad H_{ii} = \Phi_iA^{-1}\Phi_i^\top",
    "evidence.updated_precision": r"\delta = \gamma/\lVert w\rVert^2",
    "evidence.updated_noise_std": r"\sigma^2 = \frac{\sum_i s_i\lVert y_i-f_i\rVert^2}"
    r"{K\sum_i s_i-\gamma}",
    "model_selection.conditional_evidence": r"E(\text{rest}\mid\text{part}) ="
    r" E(\text{all}) - E(\text{part})",
    "optim.GaussNewton": r"(\Phi^\top\Phi + \delta I + \mu I)\,\Delta"
    r" = -\nabla\operatorname{loss}(w)",
    "optim.VOGGN": _STEP % _GGN,
    "optim.VOGN": _STEP % _DIAGONAL,
    "optim.OGGN": _AT_THE_MEAN % r"J^\top\Lambda J",
    "optim.OGN": _AT_THE_MEAN % r"\operatorname{diag}(J^\top\Lambda J)",
    "likelihoods.Gaussian": r"r = (f-y)/\sigma^2,\qquad \Lambda = I/\sigma^2",
    "likelihoods.HeteroscedasticGaussian": r"y\sim\mathcal N(m, s^2),\qquad f = (m, \log s)",
    "likelihoods.Bernoulli": r"r = p-y,\qquad \Lambda = p(1-p),\qquad p = 1/(1+e^{-f})",
    "likelihoods.Categorical": r"r = p-e_y,\qquad \Lambda = \operatorname{diag}p - pp^\top,\qquad"
    r" p = \operatorname{softmax}f",
    "likelihoods.Poisson": r"r = \mu-y,\qquad \Lambda = \mu,\qquad \mu = ce^f",
    "likelihoods.StudentT": r"r = \frac{(\nu+1)z}{(\nu+z^2)s},\qquad"
    r" \Lambda = \frac{\nu+1}{(\nu+3)s^2},\qquad z = (f-y)/s",
    "likelihoods.Ordinal": r"P(y\le k) = \operatorname{sigmoid}\frac{c_k-f}s",
    "predictive.Normal": r"y\sim\mathcal N(m,\ \sigma^2+V)",
    "predictive.PoissonLognormal": r"p(y) = \int\operatorname{Poisson}(y\mid e^f)\;"
    r"\mathcal N(f\mid m, V)\,df",
    "predictive.Mixture": _MIXTURE.replace(r"\frac1M\sum_{m=1}^M", r"\sum_m\pi_m"),
    "predictive.StudentNormal": r"p(y) = \int\mathcal N(y\mid m,\ V+s^2/\lambda)\;"
    r"\Gamma(\lambda\mid\tfrac\nu2,\tfrac\nu2)\,d\lambda",
    "predictive.NormalLognormal": r"y\sim\mathcal N(m, s^2),\qquad"
    r" (m, \log s)\text{ Gaussian}",
}  # fmt: skip


def table() -> dict[str, str]:
    """{full name: formula in TeX}."""
    return {f"sk_dnn2gp.{name}": formula for name, formula in FORMULAS.items()}
