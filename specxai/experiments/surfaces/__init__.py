"""The paper's section 2.2: nets that read 3-D surfaces, cars with their drag and wind turbines with their peak stress.

>>> from specxai.experiments.surfaces import car_set
>>> cars = car_set()
>>> cars.name, cars.what
('car', 'drag coefficient')
"""

from specxai.experiments.surfaces.car_shapes import car_set
from specxai.experiments.surfaces.turbine_shapes import turbine_set

__all__ = ["car_set", "turbine_set"]
