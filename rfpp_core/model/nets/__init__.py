"""Networks: a small U-Net, and EDM's NCSN++, DDPM++ and ADM."""
