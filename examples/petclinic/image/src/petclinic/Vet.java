package petclinic;

import java.util.List;

/** A veterinarian of the clinic. */
public record Vet(int id, String firstName, String lastName, List<String> specialties) {}
