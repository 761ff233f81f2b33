package petclinic;

/** A kind of animal. */
public record PetType(int id, String name) {}
