"""The papers behind methods, solvers, schedules, networks and metrics, as BibTeX has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["REFERENCES", "Citation", "entry"]


def entry(kind: str, key: str, held: Mapping[str, str]) -> str:
    """A BibTeX entry; fields without a value are left out."""
    lines = [f"  {name:<13} = {{{value}}}," for name, value in held.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


@dataclass(frozen=True)
class Citation:
    """A paper; `venue` is a journal or a conference, or empty where there is only a preprint."""

    authors: str
    title: str
    year: int
    arxiv: str = ""
    venue: str = ""
    journal: bool = False

    @property
    def short(self) -> str:
        """`Song et al., 2023, arXiv 2303.01469`."""
        names = [author.split(",")[0] for author in self.authors.split(" and ")]
        by = names[0] if len(names) == 1 else " & ".join(names) if len(names) == 2 else f"{names[0]} et al."
        return f"{by}, {self.year}" + (f", arXiv {self.arxiv}" if self.arxiv else "")

    def bibtex(self, key: str) -> str:
        """The entry of this paper."""
        kind = "article" if self.journal else "inproceedings" if self.venue else "misc"
        held = {
            "author": self.authors,
            "title": f"{{{self.title}}}",
            ("journal" if self.journal else "booktitle"): self.venue,
            "year": str(self.year),
            "eprint": self.arxiv,
            "archiveprefix": "arXiv" if self.arxiv else "",
        }
        return entry(kind, key, held)


ICLR, ICML, CVPR = (
    "International Conference on Learning Representations",
    "International Conference on Machine Learning",
    "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
)

NEURIPS = "Advances in Neural Information Processing Systems"

REFERENCES: dict[str, Citation] = {
    # Methods
    "zheng2023fast": Citation(
        "Zheng, Hongkai and Nie, Weili and Vahdat, Arash and Azizzadenesheli, Kamyar and Anandkumar, Anima",
        "Fast Sampling of Diffusion Models via Operator Learning",
        2023,
        "2211.13449",
        ICML,
    ),
    "luhman2021knowledge": Citation(
        "Luhman, Eric and Luhman, Troy",
        "Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed",
        2021,
        "2101.02388",
    ),
    "salimans2022progressive": Citation(
        "Salimans, Tim and Ho, Jonathan",
        "Progressive Distillation for Fast Sampling of Diffusion Models",
        2022,
        "2202.00512",
        ICLR,
    ),
    "meng2023distillation": Citation(
        "Meng, Chenlin and Rombach, Robin and Gao, Ruiqi and Kingma, Diederik P. and Ermon, Stefano and Ho, Jonathan "
        "and Salimans, Tim",
        "On Distillation of Guided Diffusion Models",
        2023,
        "2210.03142",
        CVPR,
    ),
    "song2023consistency": Citation(
        "Song, Yang and Dhariwal, Prafulla and Chen, Mark and Sutskever, Ilya",
        "Consistency Models",
        2023,
        "2303.01469",
        ICML,
    ),
    "song2024improved": Citation(
        "Song, Yang and Dhariwal, Prafulla",
        "Improved Techniques for Training Consistency Models",
        2024,
        "2310.14189",
        ICLR,
    ),
    "geng2025consistency": Citation(
        "Geng, Zhengyang and Pokle, Ashwini and Luo, Weijian and Lin, Justin and Kolter, J. Zico",
        "Consistency Models Made Easy",
        2025,
        "2406.14548",
        ICLR,
    ),
    "lu2025simplifying": Citation(
        "Lu, Cheng and Song, Yang",
        "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models",
        2025,
        "2410.11081",
        ICLR,
    ),
    "boffi2025flow": Citation(
        "Boffi, Nicholas M. and Albergo, Michael S. and Vanden-Eijnden, Eric",
        "Flow map matching with stochastic interpolants: A mathematical framework for consistency models",
        2025,
        "2406.07507",
        "Transactions on Machine Learning Research",
        journal=True,
    ),
    "frans2025one": Citation(
        "Frans, Kevin and Hafner, Danijar and Levine, Sergey and Abbeel, Pieter",
        "One Step Diffusion via Shortcut Models",
        2025,
        "2410.12557",
        ICLR,
    ),
    "geng2025mean": Citation(
        "Geng, Zhengyang and Deng, Mingyang and Bai, Xingjian and Kolter, J. Zico and He, Kaiming",
        "Mean Flows for One-step Generative Modeling",
        2025,
        "2505.13447",
        NEURIPS,
    ),
    "zhang2025flow": Citation(
        "Zhang, Xinxi and Tan, Shiwei and Nguyen, Quang and Dao, Quan and Han, Ligong and He, Xiaoxiao and Zhang, "
        "Tunyu and Mrdovic, Alen and Metaxas, Dimitris",
        "Flow Straighter and Faster: Efficient One-Step Generative Modeling via MeanFlow on Rectified Trajectories",
        2025,
        "2511.23342",
    ),
    "yin2024one": Citation(
        "Yin, Tianwei and Gharbi, Micha{\\\"e}l and Zhang, Richard and Shechtman, Eli and Durand, Fr{\\'e}do and "
        "Freeman, William T. and Park, Taesung",
        "One-step Diffusion with Distribution Matching Distillation",
        2024,
        "2311.18828",
        CVPR,
    ),
    "yin2024improved": Citation(
        'Yin, Tianwei and Gharbi, Micha{\\"e}l and Park, Taesung and Zhang, Richard and Shechtman, Eli and Durand, '
        "Fr{\\'e}do and Freeman, William T.",
        "Improved Distribution Matching Distillation for Fast Image Synthesis",
        2024,
        "2405.14867",
        NEURIPS,
    ),
    # Guidance
    "ho2022classifier": Citation(
        "Ho, Jonathan and Salimans, Tim", "Classifier-Free Diffusion Guidance", 2022, "2207.12598"
    ),
    "saharia2022photorealistic": Citation(
        "Saharia, Chitwan and Chan, William and Saxena, Saurabh and others",
        "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding",
        2022,
        "2205.11487",
        NEURIPS,
    ),
    # Solvers
    "song2021denoising": Citation(
        "Song, Jiaming and Meng, Chenlin and Ermon, Stefano",
        "Denoising Diffusion Implicit Models",
        2021,
        "2010.02502",
        ICLR,
    ),
    "ho2020denoising": Citation(
        "Ho, Jonathan and Jain, Ajay and Abbeel, Pieter",
        "Denoising Diffusion Probabilistic Models",
        2020,
        "2006.11239",
        NEURIPS,
    ),
    "karras2022elucidating": Citation(
        "Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli",
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022,
        "2206.00364",
        NEURIPS,
    ),
    "lu2022dpmpp": Citation(
        "Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, Jun",
        "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
        2022,
        "2211.01095",
    ),
    "zhao2023unipc": Citation(
        "Zhao, Wenliang and Bai, Lujia and Rao, Yongming and Zhou, Jie and Lu, Jiwen",
        "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
        2023,
        "2302.04867",
        NEURIPS,
    ),
    # Exact samplers in few rounds
    "shih2023parallel": Citation(
        "Shih, Andy and Belkhale, Suneel and Ermon, Stefano and Sadigh, Dorsa and Anari, Nima",
        "Parallel Sampling of Diffusion Models",
        2023,
        "2305.16317",
        NEURIPS,
    ),
    "tang2024accelerating": Citation(
        "Tang, Zhiwei and Tang, Jiasheng and Luo, Hao and Wang, Fan and Chang, Tsung-Hui",
        "Accelerating Parallel Sampling of Diffusion Models",
        2024,
        "2402.09970",
        ICML,
    ),
    "selvam2024self": Citation(
        "Selvam, Nikil Roashan and Merchant, Amil and Ermon, Stefano",
        "Self-Refining Diffusion Samplers: Enabling Parallelization via Parareal Iterations",
        2024,
        "2412.08292",
        NEURIPS,
    ),
    "debortoli2025accelerated": Citation(
        "De Bortoli, Valentin and Galashov, Alexandre and Gretton, Arthur and Doucet, Arnaud",
        "Accelerated Diffusion Models via Speculative Sampling",
        2025,
        "2501.05370",
        ICML,
    ),
    # Schedules and networks
    "nichol2021improved": Citation(
        "Nichol, Alexander Quinn and Dhariwal, Prafulla",
        "Improved Denoising Diffusion Probabilistic Models",
        2021,
        "2102.09672",
        ICML,
    ),
    "song2021score": Citation(
        "Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek and Ermon, Stefano and "
        "Poole, Ben",
        "Score-Based Generative Modeling through Stochastic Differential Equations",
        2021,
        "2011.13456",
        ICLR,
    ),
    "liu2023flow": Citation(
        "Liu, Xingchao and Gong, Chengyue and Liu, Qiang",
        "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        2023,
        "2209.03003",
        ICLR,
    ),
    "dhariwal2021diffusion": Citation(
        "Dhariwal, Prafulla and Nichol, Alexander Quinn",
        "Diffusion Models Beat {GANs} on Image Synthesis",
        2021,
        "2105.05233",
        NEURIPS,
    ),
    "karras2024analyzing": Citation(
        "Karras, Tero and Aittala, Miika and Lehtinen, Jaakko and Hellsten, Janne and Aila, Timo and Laine, Samuli",
        "Analyzing and Improving the Training Dynamics of Diffusion Models",
        2024,
        "2312.02696",
        CVPR,
    ),
    # Restoring pictures
    "graikos2025fast": Citation(
        "Graikos, Alexandros and Jojic, Nebojsa and Samaras, Dimitris",
        "Fast Constrained Sampling in Pre-Trained Diffusion Models",
        2025,
        "2410.18804",
        NEURIPS,
    ),
    "chung2023diffusion": Citation(
        "Chung, Hyungjin and Kim, Jeongsol and McCann, Michael T. and Klasky, Marc L. and Ye, Jong Chul",
        "Diffusion Posterior Sampling for General Noisy Inverse Problems",
        2023,
        "2209.14687",
        ICLR,
    ),
    "song2023pseudoinverse": Citation(
        "Song, Jiaming and Vahdat, Arash and Mardani, Morteza and Kautz, Jan",
        "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
        2023,
        venue=ICLR,
    ),
    "zhu2023denoising": Citation(
        "Zhu, Yuanzhi and Zhang, Kai and Liang, Jingyun and Cao, Jiezhang and Wen, Bihan and Timofte, Radu and "
        "Van Gool, Luc",
        "Denoising Diffusion Models for Plug-and-Play Image Restoration",
        2023,
        "2305.08995",
        f"{CVPR} Workshops",
    ),
    "wang2023zero": Citation(
        "Wang, Yinhuai and Yu, Jiwen and Zhang, Jian",
        "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
        2023,
        "2212.00490",
        ICLR,
    ),
    "lugmayr2022repaint": Citation(
        "Lugmayr, Andreas and Danelljan, Martin and Romero, Andres and Yu, Fisher and Timofte, Radu and Van Gool, Luc",
        "{RePaint}: Inpainting Using Denoising Diffusion Probabilistic Models",
        2022,
        "2201.09865",
        CVPR,
    ),
    "he2024manifold": Citation(
        "He, Yutong and Murata, Naoki and Lai, Chieh-Hsin and Takida, Yuhta and others",
        "Manifold Preserving Guided Diffusion",
        2024,
        "2311.16424",
        ICLR,
    ),
    "yue2025arbitrary": Citation(
        "Yue, Zongsheng and Liao, Kang and Loy, Chen Change",
        "Arbitrary-steps Image Super-resolution via Diffusion Inversion",
        2025,
        "2412.09013",
        CVPR,
    ),
    "wang2024exploiting": Citation(
        "Wang, Jianyi and Yue, Zongsheng and Zhou, Shangchen and Chan, Kelvin C. K. and Loy, Chen Change",
        "Exploiting Diffusion Prior for Real-World Image Super-Resolution",
        2024,
        "2305.07015",
        "International Journal of Computer Vision",
        journal=True,
    ),
    "huang2017arbitrary": Citation(
        "Huang, Xun and Belongie, Serge",
        "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization",
        2017,
        "1703.06868",
        "IEEE International Conference on Computer Vision",
    ),
    "laroche2024fast": Citation(
        "Laroche, Charles and Almansa, Andr{\\'e}s and Coupet{\\'e}, Eva",
        "Fast Diffusion {EM}: A Diffusion Model for Blind Inverse Problems with Application to Deconvolution",
        2024,
        "2309.00287",
        "IEEE/CVF Winter Conference on Applications of Computer Vision",
    ),
    "zhang2017beyond": Citation(
        "Zhang, Kai and Zuo, Wangmeng and Chen, Yunjin and Meng, Deyu and Zhang, Lei",
        "Beyond a {Gaussian} Denoiser: Residual Learning of Deep {CNN} for Image Denoising",
        2017,
        "1608.03981",
        "IEEE Transactions on Image Processing",
        journal=True,
    ),
    "bartal2023multidiffusion": Citation(
        "Bar-Tal, Omer and Yariv, Lior and Lipman, Yaron and Dekel, Tali",
        "{MultiDiffusion}: Fusing Diffusion Paths for Controlled Image Generation",
        2023,
        "2302.08113",
        ICML,
    ),
    # Distances and metrics
    "zhang2018unreasonable": Citation(
        "Zhang, Richard and Isola, Phillip and Efros, Alexei A. and Shechtman, Eli and Wang, Oliver",
        "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
        2018,
        "1801.03924",
        CVPR,
    ),
    "heusel2017gans": Citation(
        "Heusel, Martin and Ramsauer, Hubert and Unterthiner, Thomas and Nessler, Bernhard and Hochreiter, Sepp",
        "{GANs} Trained by a Two Time-Scale Update Rule Converge to a Local {Nash} Equilibrium",
        2017,
        "1706.08500",
        NEURIPS,
    ),
    "binkowski2018demystifying": Citation(
        "Bi{\\'n}kowski, Miko{\\l}aj and Sutherland, Danica J. and Arbel, Michael and Gretton, Arthur",
        "Demystifying {MMD} {GANs}",
        2018,
        "1801.01401",
        ICLR,
    ),
    "kynkaanniemi2019improved": Citation(
        'Kynk{\\"a}{\\"a}nniemi, Tuomas and Karras, Tero and Laine, Samuli and Lehtinen, Jaakko and Aila, Timo',
        "Improved Precision and Recall Metric for Assessing Generative Models",
        2019,
        "1904.06991",
        NEURIPS,
    ),
    "meehan2020nonparametric": Citation(
        "Meehan, Casey and Chaudhuri, Kamalika and Dasgupta, Sanjoy",
        "A Non-Parametric Test to Detect Data-Copying in Generative Models",
        2020,
        "2004.05675",
        "International Conference on Artificial Intelligence and Statistics",
    ),
    "wang2004image": Citation(
        "Wang, Zhou and Bovik, Alan C. and Sheikh, Hamid R. and Simoncelli, Eero P.",
        "Image Quality Assessment: From Error Visibility to Structural Similarity",
        2004,
        venue="IEEE Transactions on Image Processing",
        journal=True,
    ),
    "shaul2026parallel": Citation(
        "Shaul and Liu and Vahdat and Berner",
        "Parallel Decoding Distillation",
        2026,
        "2607.26004",
    ),
    "zhou2024score": Citation(
        "Zhou, Mingyuan and Zheng, Huangjie and Wang, Zhendong and Yin, Mingzhang and Huang, Hai",
        "Score identity Distillation: Exponentially Fast Distillation of Pretrained Diffusion Models for One-Step "
        "Generation",
        2024,
        "2404.04057",
        ICML,
    ),
    "liu2022pseudo": Citation(
        "Liu, Luping and Ren, Yi and Lin, Zhijie and Zhao, Zhou",
        "Pseudo Numerical Methods for Diffusion Models on Manifolds",
        2022,
        "2202.09778",
        ICLR,
    ),
    "wizadwongsa2023accelerating": Citation(
        "Wizadwongsa, Suttisak and Suwajanakorn, Supasorn",
        "Accelerating Guided Diffusion Sampling with Splitting Numerical Methods",
        2023,
        "2301.11558",
        ICLR,
    ),
    "bansal2023universal": Citation(
        "Bansal, Arpit and Chu, Hong-Min and Schwarzschild, Avi and Sengupta, Soumyadip and others",
        "Universal Guidance for Diffusion Models",
        2023,
        "2302.07121",
    ),
    "li2023bbdm": Citation(
        "Li, Bo and Xue, Kaitao and Liu, Bin and Lai, Yu-Kun",
        "{BBDM}: Image-to-Image Translation with Brownian Bridge Diffusion Models",
        2023,
        "2205.07680",
        CVPR,
    ),
    "liu2023i2sb": Citation(
        "Liu, Guan-Horng and Vahdat, Arash and Huang, De-An and Theodorou, Evangelos A. and Nie, Weili and Anandkumar, "
        "Anima",
        '{I$^2$SB}: Image-to-Image {Schr{\\"o}dinger} Bridge',
        2023,
        "2302.05872",
        ICML,
    ),
    "zhou2024denoising": Citation(
        "Zhou, Linqi and Lou, Aaron and Khanna, Samar and Ermon, Stefano",
        "Denoising Diffusion Bridge Models",
        2024,
        "2309.16948",
        ICLR,
    ),
    "zheng2025diffusion": Citation(
        "Zheng, Kaiwen and He, Guande and Chen, Jianfei and Bao, Fan and Zhu, Jun",
        "Diffusion Bridge Implicit Models",
        2025,
        "2405.15885",
        ICLR,
    ),
    "wang2024ordinary": Citation(
        "Wang, Yuang and Jin, Pengfei and Zhang, Li and Li, Quanzheng and Chen, Zhiqiang and Wu, Dufan",
        "An Ordinary Differential Equation Sampler with Stochastic Start for Diffusion Bridge Models",
        2024,
        "2412.19992",
    ),
}
"""The papers by key."""
