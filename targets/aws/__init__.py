"""Kits that deploy packages of other targets on AWS: endpoints of SageMaker, components of Greengrass."""
